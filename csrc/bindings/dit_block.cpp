// SPDX-License-Identifier: Apache-2.0
// DiT blocks over paged K/V as one call, for ardiff_engine/models/dit/native_block.py: the kernels of their
// ops one after the other, with the MLP's GELU and both gated residuals inside the linear layers. A pass over
// one frame is a few hundred microseconds of arithmetic per block; calling ten ops from Python costs as much
// again.
//
//   u = modulate(h);  q = norm_rope_write(linear(u));  h += gate linear(frame_attention(q))
//   u = modulate(h);  h += gate linear(gelu(linear(u)))
//
// All but attention goes over chunks of the tokens, so that qkv and the hidden layer, the widest rows, stay
// in the caches however many cells a batch has. Rows do not depend on each other: chunks change no bits, and
// in the last block what follows attention is left out for tokens whose output nobody wants: those of frames
// that only store K/V.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "ardiff/frame_attention.h"
#include "ardiff/linear.h"
#include "ardiff/modulate.h"
#include "ardiff/norm_rope_write.h"
#include "attention_table.h"
#include "binding.h"
#include "cpu/threads.h"
#include "frame_ids.h"
#include "shared_kernels.h"

namespace py = pybind11;

namespace {

template <std::size_t N>
using Integers = std::array<std::int64_t, N>;

template <class T, std::size_t N>
T* at(const Integers<N>& addresses, int i) {
  return ardiff::bindings::pointer<T>(static_cast<std::uintptr_t>(addresses[i]));
}

struct Shape {
  std::int64_t tokens, width, hidden, heads, dim, rows, pages, page_rows;
  std::int64_t page_stride, head_stride, row_stride;
};

constexpr std::int64_t kChunkRows = 128;  // per thread; csrc/cpu/linear.cpp works on blocks of as many

struct Range {
  std::int64_t first, count;
};

// Scratch, in floats: the longer of qkv and the hidden layer, for a chunk; u, which attention then
// overwrites; q; lse; angles.
struct Workspace {
  std::int64_t chunk;  // tokens
  float *wide, *u, *q, *lse, *angles;
  static std::int64_t whole(const Shape& s) { return s.tokens * (2 * s.width + s.heads + 2 * s.dim); }
  static std::int64_t floats(const Shape& s) {
    const std::int64_t rows = std::min(s.tokens, kChunkRows * ardiff::cpu::max_threads());
    return rows * std::max(3 * s.width, s.hidden) + whole(s);
  }
  // The chunk follows from the memory that is there: the number of threads may have changed since.
  Workspace(float* data, std::int64_t floats, const Shape& s)
      : chunk(std::min(s.tokens, (floats - whole(s)) / std::max(3 * s.width, s.hidden))), wide(data) {
    u = wide + chunk * std::max(3 * s.width, s.hidden);
    q = u + s.tokens * s.width;
    lse = q + s.tokens * s.width;
    angles = lse + s.tokens * s.heads;
  }
};

// panels and bias of qkv, proj, fc1, fc2; weight and bias of the norms of q and k (0: none)
using Weights = Integers<12>;
// h, modulation rows, frame_ids, slots, positions, frequencies (0: none), K pages, V pages, workspace and its
// number of floats, wanted (0: all); modulation rows and pages are those of the first block
using Tensors = Integers<11>;
// frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias (0: none), number of groups
using Table = Integers<8>;

class Block {
 public:
  Block(const Weights& weights, const Tensors& tensors, const Table& table, const Shape& shape,
        bool replaces_residual, float eps, float qk_eps)
      : weights_(weights),
        s_(shape),
        h_(at<float>(tensors, 0)),
        modulation_(at<const float>(tensors, 1)),
        frame_ids_(at<const std::int32_t>(tensors, 2)),
        work_(at<float>(tensors, 8), tensors[9], shape),
        replaces_residual_(replaces_residual),
        eps_(eps) {
    write_.qkv = work_.wide;
    write_.k_pages = at<float>(tensors, 6);
    write_.v_pages = at<float>(tensors, 7);
    write_.slots = at<const std::int64_t>(tensors, 3);
    write_.positions = at<const std::int64_t>(tensors, 4);
    write_.q = work_.q;
    write_.q_weight = at<const float>(weights, 8);
    write_.q_bias = at<const float>(weights, 9);
    write_.k_weight = at<const float>(weights, 10);
    write_.k_bias = at<const float>(weights, 11);
    write_.frequencies = at<const double>(tensors, 5);
    write_.angles = work_.angles;
    write_.heads = write_.kv_heads = s_.heads;
    write_.dim = s_.dim;
    write_.axes = 1;
    write_.pages = s_.pages;
    write_.page_rows = s_.page_rows;
    write_.page_stride = s_.page_stride;
    write_.head_stride = s_.head_stride;
    write_.row_stride = s_.row_stride;
    write_.norm = write_.q_weight ? ardiff::HeadNorm::layer : ardiff::HeadNorm::none;
    write_.eps = qk_eps;

    attend_.q = work_.q;
    attend_.k = write_.k_pages;
    attend_.v = write_.v_pages;
    attend_.o = work_.u;
    attend_.lse = work_.lse;
    attend_.frame_ptr = at<const std::int32_t>(table, 0);
    attend_.group_ptr = at<const std::int32_t>(table, 1);
    attend_.page_ptr = at<const std::int32_t>(table, 2);
    attend_.pages = at<const std::int32_t>(table, 3);
    attend_.valid = at<const std::int32_t>(table, 4);
    attend_.seen = at<const std::int32_t>(table, 5);
    attend_.bias = at<const float>(table, 6);
    attend_.groups = table[7];
    attend_.heads = attend_.kv_heads = s_.heads;
    attend_.dim = s_.dim;
    attend_.num_pages = s_.pages;
    attend_.page_rows = s_.page_rows;
    attend_.q_token = s_.width;
    attend_.q_head = s_.dim;
    attend_.k_page = attend_.v_page = s_.page_stride;
    attend_.k_head = attend_.v_head = s_.head_stride;
    attend_.k_row = attend_.v_row = s_.row_stride;
    attend_.scale = 1.0f / std::sqrt(static_cast<float>(s_.dim));
  }

  // What is wrong with the batch, before anything is written; null: nothing.
  const char* misfit() const {
    if (s_.tokens > 0 && work_.chunk < 1) return "a workspace of another shape";
    if (ardiff::bindings::first_bad_id(frame_ids_, s_.tokens, s_.rows) >= 0) {
      return "a frame id beyond the modulation rows";
    }
    for (std::int64_t t = 0; t < s_.tokens; ++t) {
      if (write_.slots[t] < -1 || write_.slots[t] >= s_.pages * s_.page_rows) {
        return "a slot beyond the page pool";
      }
    }
    return ardiff::bindings::table_fits(attend_, s_.tokens) ? nullptr : "a table of another batch or pool";
  }

  // wanted: uint8 [tokens], whose output is; null: everybody's.
  void run(const std::uint8_t* wanted) const {
    using ardiff::LinearEpilogue;
    const std::int64_t width = s_.width, hidden = s_.hidden;
    for (Range rows{0, 0}; next(&rows);) {
      float* u = work_.u + rows.first * width;
      modulate(rows, 0);
      linear(rows, 0, u, width, work_.wide, 3 * width, LinearEpilogue::none, 0);
      norm_rope_write(rows);
    }
    ardiff::cpu::frame_attention(attend_);
    for (Range rows{0, 0}; next(&rows, wanted);) {
      float *u = work_.u + rows.first * width, *h = h_ + rows.first * width;
      linear(rows, 1, u, width, h, width, LinearEpilogue::gated, 2);
      modulate(rows, 3);
      linear(rows, 2, u, width, work_.wide, hidden, LinearEpilogue::gelu, 0);
      linear(rows, 3, work_.wide, hidden, h, width, LinearEpilogue::gated, 5);
    }
  }

 private:
  bool next(Range* rows, const std::uint8_t* wanted = nullptr) const {
    rows->first += rows->count;
    if (wanted == nullptr) {
      rows->count = std::min(work_.chunk, s_.tokens - rows->first);
      return rows->count > 0;
    }
    while (rows->first < s_.tokens && !wanted[rows->first]) ++rows->first;
    const std::int64_t end = std::min(s_.tokens, rows->first + work_.chunk);
    std::int64_t last = rows->first;
    while (last < end && wanted[last]) ++last;
    rows->count = last - rows->first;
    return rows->count > 0;
  }

  // Row `first` of the six of a frame is the shift, the next one the scale.
  void modulate(Range rows, int first) const {
    ardiff::ModulateParams p{};
    float* h = h_ + rows.first * s_.width;
    p.x = h;
    p.shift = modulation_ + first * s_.width;
    p.scale = p.shift + s_.width;
    p.frame_ids = frame_ids_ + rows.first;
    p.y = work_.u + rows.first * s_.width;
    p.normed = replaces_residual_ ? h : nullptr;
    p.tokens = rows.count;
    p.width = s_.width;
    p.rows = s_.rows;
    p.shift_stride = p.scale_stride = 6 * s_.width;
    p.norm = ardiff::RowNorm::layer;
    p.eps = eps_;
    ardiff::cpu::modulate(p);
  }

  void norm_rope_write(Range rows) const {
    ardiff::NormRopeWriteParams p = write_;
    p.slots += rows.first;
    p.positions += rows.first;
    p.q += rows.first * s_.width;
    p.angles += rows.first * 2 * s_.dim;
    p.tokens = rows.count;
    ardiff::cpu::norm_rope_write(p);
  }

  void linear(Range rows, int layer, const float* x, std::int64_t inputs, float* y, std::int64_t outputs,
              ardiff::LinearEpilogue epilogue, int gate) const {
    ardiff::LinearParams p{};
    p.x = x;
    p.panels = at<const float>(weights_, 2 * layer);
    p.bias = at<const float>(weights_, 2 * layer + 1);
    p.y = y;
    p.rows = rows.count;
    p.inputs = inputs;
    p.outputs = outputs;
    p.epilogue = epilogue;
    p.residual = y;
    p.gate = modulation_ + gate * s_.width;
    p.frame_ids = frame_ids_ + rows.first;
    p.gate_stride = 6 * s_.width;
    ardiff::cpu::linear(p);
  }

  Weights weights_;
  Shape s_;
  float* h_;
  const float* modulation_;
  const std::int32_t* frame_ids_;
  Workspace work_;
  bool replaces_residual_;
  float eps_;
  ardiff::NormRopeWriteParams write_{};
  ardiff::FrameAttentionParams attend_{};
};

Shape shape_of(const Integers<11>& sizes) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5],
          sizes[6], sizes[7], sizes[8], sizes[9], sizes[10]};
}

// From block to block modulation rows and pages move on by these numbers of floats.
void dit_blocks(const std::vector<Weights>& blocks, const Tensors& tensors, const Table& table,
                const Integers<11>& sizes, std::int64_t modulation_stride, std::int64_t pages_stride,
                bool replaces_residual, float eps, float qk_eps) {
  const Shape shape = shape_of(sizes);
  const auto block = [&](std::size_t i) {
    Tensors own = tensors;
    const auto n = static_cast<std::int64_t>(i * sizeof(float));
    own[1] += n * modulation_stride;
    own[6] += n * pages_stride;
    own[7] += n * pages_stride;
    return Block(blocks[i], own, table, shape, replaces_residual, eps, qk_eps);
  };
  if (blocks.empty()) return;
  // What is checked is the same for all of them.
  if (const char* misfit = block(0).misfit()) throw py::index_error(misfit);
  py::gil_scoped_release release;
  const auto* wanted = at<const std::uint8_t>(tensors, 10);
  for (std::size_t i = 0; i < blocks.size(); ++i) block(i).run(i + 1 == blocks.size() ? wanted : nullptr);
}

}  // namespace

ARDIFF_BINDING(dit_block) {
  m.def("dit_blocks", &dit_blocks);
  m.def("dit_block_floats", [](const Integers<11>& sizes) { return Workspace::floats(shape_of(sizes)); });
}
