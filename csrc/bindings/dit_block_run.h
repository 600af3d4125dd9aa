// SPDX-License-Identifier: Apache-2.0
// What a pass of DiT blocks does with the specs of dit_block.h: the kernels of their ops one after the other,
// with activations and residuals inside the linear layers.
//
// All but attention goes over chunks of the tokens, so that qkv and the hidden layer, the widest rows, stay
// in the caches however many cells a batch has. Rows do not depend on each other: chunks change no bits, and
// in the last block what follows attention is left out for tokens whose output nobody wants: those of frames
// that only store K/V.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention_table.h"
#include "binding.h"
#include "cpu/threads.h"
#include "dit_block.h"
#include "frame_ids.h"
#include "shared_kernels.h"

namespace ardiff::bindings::dit {

namespace py = pybind11;

inline constexpr std::int64_t kChunkRows = 128;  // per thread; csrc/cpu/linear.cpp works on blocks of as many

struct Range {
  std::int64_t first, count;
};

inline std::int64_t inner(const AttentionSpec& a) { return a.heads.heads * a.heads.dim; }

// Scratch, in floats. Of a chunk: the widest rows (qkv, q of cross-attention, the hidden layer) and the
// normed rows. Of all tokens: q, the output of attention, lse, angles.
struct Workspace {
  std::int64_t chunk_row = 0, token = 0;  // floats per row of a chunk, per token
  std::int64_t wide = 0, heads_width = 0, heads = 0, dim = 0;

  Workspace(const std::vector<const BlockSpec*>& blocks, std::int64_t width) {
    for (const BlockSpec* b : blocks) {
      wide = std::max({wide, b->self_attention.projection.outputs, b->mlp.up.outputs});
      add(b->self_attention);
      if (b->has_cross_attention) {
        wide = std::max(wide, b->cross_attention.projection.outputs);
        add(b->cross_attention);
      }
    }
    chunk_row = wide + width;
    token = 2 * heads_width + heads + 2 * dim;
  }
  std::int64_t floats(std::int64_t tokens) const {
    return std::min(tokens, kChunkRows * ardiff::cpu::max_threads()) * chunk_row + tokens * token;
  }
  // Follows from the memory that is there: the number of threads may have changed since.
  std::int64_t chunk(std::int64_t tokens, std::int64_t floats) const {
    return std::min(tokens, (floats - tokens * token) / std::max<std::int64_t>(chunk_row, 1));
  }

 private:
  void add(const AttentionSpec& a) {
    heads_width = std::max(heads_width, inner(a));
    heads = std::max(heads, a.heads.heads);
    dim = std::max(dim, a.heads.dim);
  }
};

class Block {
 public:
  Block(const BlockSpec& spec, const PassSpec& pass, const Workspace& work, std::int64_t layer)
      : b_(spec),
        p_(pass),
        chunk_(work.chunk(pass.tokens, pass.workspace_floats)),
        h_(pointer<float>(pass.h)),
        modulation_(pointer<const float>(pass.modulation) + layer * pass.modulation_stride),
        frame_ids_(pointer<const std::int32_t>(pass.frame_ids)),
        wide_(pointer<float>(pass.workspace)) {
    u_ = wide_ + chunk_ * work.wide;
    q_ = u_ + chunk_ * p_.width;
    o_ = q_ + p_.tokens * work.heads_width;
    lse_ = o_ + p_.tokens * work.heads_width;
    float* angles = lse_ + p_.tokens * work.heads;

    const PagesSpec& pages = p_.pages;
    write_ = projected(b_.self_attention, angles);
    write_.k_pages = pointer<float>(pages.k) + layer * pages.layer_stride;
    write_.v_pages = pointer<float>(pages.v) + layer * pages.layer_stride;
    write_.slots = pointer<const std::int64_t>(p_.slots);
    write_.positions = pointer<const std::int64_t>(p_.positions);
    write_.frequencies = pointer<const double>(p_.frequencies);
    write_.axes = p_.axes;
    write_.pages = pages.pages;
    write_.page_rows = pages.page_rows;
    write_.page_stride = pages.page_stride;
    write_.head_stride = pages.head_stride;
    write_.row_stride = pages.row_stride;
    attend_.push_back(attention(b_.self_attention, pages, layer));
    for (const PagesSpec& own : p_.further) attend_.push_back(attention(b_.self_attention, own, layer));
    if (b_.has_cross_attention) {
      cross_write_ = projected(b_.cross_attention, nullptr);
      cross_write_.kv_heads = 0;  // K and V of the condition are in their pages already
      cross_attend_ = attention(b_.cross_attention, p_.condition, layer);
    }
  }

  // What is wrong with the batch, before anything is written; null: nothing.
  const char* misfit() const {
    if (p_.tokens > 0 && chunk_ < 1) return "a workspace of another shape";
    if (first_bad_id(frame_ids_, p_.tokens, p_.rows) >= 0) return "a frame id beyond the modulation rows";
    for (std::int64_t t = 0; t < p_.tokens; ++t) {
      if (write_.slots[t] < -1 || write_.slots[t] >= write_.pages * write_.page_rows) {
        return "a slot beyond the page pool";
      }
    }
    for (const FrameAttentionParams& own : attend_) {
      if (!table_fits(own, p_.tokens)) return "a table of another batch or pool";
    }
    if (b_.has_cross_attention && !table_fits(cross_attend_, p_.tokens)) {
      return "a table of conditions of another batch or pool";
    }
    return nullptr;
  }

  // wanted: uint8 [tokens], whose output is; null: everybody's.
  void run(const std::uint8_t* wanted) const {
    const AttentionSpec &self = b_.self_attention, &cross = b_.cross_attention;
    for (Range rows{0, 0}; next(&rows);) {
      norm(rows, self.branch);
      linear(rows, self.projection, u_, wide_, LinearEpilogue::none);
      norm_rope(rows, write_);
    }
    for (const FrameAttentionParams& own : attend_) ardiff::cpu::frame_attention(own);
    for (Range rows{0, 0}; next(&rows, wanted);) {
      residual(rows, self.out, o_ + rows.first * inner(self), self.branch);
      if (b_.has_cross_attention) {
        norm(rows, cross.branch);
        linear(rows, cross.projection, u_, wide_, LinearEpilogue::none);
        norm_rope(rows, cross_write_);
      } else {
        mlp(rows);
      }
    }
    if (!b_.has_cross_attention) return;
    ardiff::cpu::frame_attention(cross_attend_);
    for (Range rows{0, 0}; next(&rows, wanted);) {
      residual(rows, cross.out, o_ + rows.first * inner(cross), cross.branch);
      mlp(rows);
    }
  }

 private:
  NormRopeWriteParams projected(const AttentionSpec& a, float* angles) const {
    NormRopeWriteParams w{};
    w.qkv = wide_;
    w.q = q_;
    w.q_weight = pointer<const float>(a.heads.q_weight);
    w.q_bias = pointer<const float>(a.heads.q_bias);
    w.k_weight = pointer<const float>(a.heads.k_weight);
    w.k_bias = pointer<const float>(a.heads.k_bias);
    w.angles = angles;
    w.heads = a.heads.heads;
    w.kv_heads = a.heads.kv_heads;
    w.dim = a.heads.dim;
    w.norm = a.heads.norm;
    w.eps = a.heads.eps;
    return w;
  }

  FrameAttentionParams attention(const AttentionSpec& a, const PagesSpec& pages, std::int64_t layer) const {
    FrameAttentionParams f{};
    const std::int64_t share = a.heads.heads / a.heads.kv_heads, first = pages.first_head * share;
    const std::int64_t start = layer * pages.layer_stride + pages.first_head * pages.head_stride;
    f.q = q_ + first * a.heads.dim;
    f.k = pointer<const float>(pages.k) + start;
    f.v = pointer<const float>(pages.v) + start;
    f.o = o_ + first * a.heads.dim;
    f.lse = lse_ + first;
    f.row_heads = a.heads.heads;
    f.frame_ptr = pointer<const std::int32_t>(pages.frame_ptr);
    f.group_ptr = pointer<const std::int32_t>(pages.group_ptr);
    f.page_ptr = pointer<const std::int32_t>(pages.page_ptr);
    f.pages = pointer<const std::int32_t>(pages.page_ids);
    f.valid = pointer<const std::int32_t>(pages.valid);
    f.seen = pointer<const std::int32_t>(pages.seen);
    f.bias = pointer<const float>(pages.bias);
    f.groups = pages.groups;
    f.kv_heads = pages.heads ? pages.heads : a.heads.kv_heads;
    f.heads = f.kv_heads * share;
    f.dim = a.heads.dim;
    f.num_pages = pages.pages;
    f.page_rows = pages.page_rows;
    f.q_token = inner(a);
    f.q_head = a.heads.dim;
    f.k_page = f.v_page = pages.page_stride;
    f.k_head = f.v_head = pages.head_stride;
    f.k_row = f.v_row = pages.row_stride;
    f.scale = 1.0f / std::sqrt(static_cast<float>(a.heads.dim));
    return f;
  }

  bool next(Range* rows, const std::uint8_t* wanted = nullptr) const {
    rows->first += rows->count;
    if (wanted == nullptr) {
      rows->count = std::min(chunk_, p_.tokens - rows->first);
      return rows->count > 0;
    }
    while (rows->first < p_.tokens && !wanted[rows->first]) ++rows->first;
    const std::int64_t end = std::min(p_.tokens, rows->first + chunk_);
    std::int64_t last = rows->first;
    while (last < end && wanted[last]) ++last;
    rows->count = last - rows->first;
    return rows->count > 0;
  }

  const float* value(int which) const { return which < 0 ? nullptr : modulation_ + which * p_.width; }

  // h -> u; where the residual is replaced, h too becomes its normed self.
  void norm(Range rows, const BranchSpec& branch) const {
    ModulateParams m{};
    float* h = h_ + rows.first * p_.width;
    const bool modulated = branch.shift >= 0;
    m.x = h;
    m.shift = modulated ? value(branch.shift) : pointer<const float>(branch.fixed_shift);
    m.scale = modulated ? value(branch.scale) : pointer<const float>(branch.fixed_scale);
    m.frame_ids = frame_ids_ + rows.first;
    m.y = u_;
    m.normed = b_.replaces_residual ? h : nullptr;
    m.tokens = rows.count;
    m.width = p_.width;
    m.rows = p_.rows;
    m.shift_stride = m.scale_stride = modulated ? p_.values * p_.width : 0;
    m.norm = branch.norm;
    m.eps = branch.eps;
    ardiff::cpu::modulate(m);
  }

  void norm_rope(Range rows, NormRopeWriteParams w) const {
    if (w.slots) w.slots += rows.first;
    if (w.positions) w.positions += rows.first * w.axes;
    w.q += rows.first * w.heads * w.dim;
    if (w.angles) w.angles += rows.first * 2 * w.dim;
    w.tokens = rows.count;
    ardiff::cpu::norm_rope_write(w);
  }

  void mlp(Range rows) const {
    norm(rows, b_.mlp.branch);
    linear(rows, b_.mlp.up, u_, wide_, b_.mlp.activation);
    residual(rows, b_.mlp.down, wide_, b_.mlp.branch);
  }

  void residual(Range rows, const LinearSpec& layer, const float* x, const BranchSpec& branch) const {
    linear(rows, layer, x, h_ + rows.first * p_.width, LinearEpilogue::gated, value(branch.gate));
  }

  void linear(Range rows, const LinearSpec& layer, const float* x, float* y, LinearEpilogue epilogue,
              const float* gate = nullptr) const {
    LinearParams l{};
    l.x = x;
    l.weights = pointer<const float>(layer.weights);
    l.panel_stride = layer.panel_stride;
    l.input_stride = layer.input_stride;
    l.bias = pointer<const float>(layer.bias);
    l.y = y;
    l.rows = rows.count;
    l.inputs = layer.inputs;
    l.outputs = layer.outputs;
    l.epilogue = epilogue;
    l.residual = y;
    l.gate = gate;
    l.frame_ids = frame_ids_ + rows.first;
    l.gate_stride = p_.values * p_.width;
    ardiff::cpu::linear(l);
  }

  const BlockSpec& b_;
  const PassSpec& p_;
  std::int64_t chunk_;
  float* h_;
  const float* modulation_;
  const std::int32_t* frame_ids_;
  float *wide_, *u_ = nullptr, *q_ = nullptr, *o_ = nullptr, *lse_ = nullptr;
  NormRopeWriteParams write_{}, cross_write_{};
  std::vector<FrameAttentionParams> attend_;
  FrameAttentionParams cross_attend_{};
};

inline void dit_blocks(const std::vector<const BlockSpec*>& blocks, const PassSpec& pass) {
  if (blocks.empty()) return;
  const Workspace work(blocks, pass.width);
  // What is checked is the same for all of them, but for what a block with cross-attention asks besides.
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (i > 0 && blocks[i]->has_cross_attention == blocks[0]->has_cross_attention) continue;
    const auto layer = static_cast<std::int64_t>(i);
    if (const char* misfit = Block(*blocks[i], pass, work, layer).misfit()) throw py::index_error(misfit);
  }
  py::gil_scoped_release release;
  const auto* wanted = pointer<const std::uint8_t>(pass.wanted);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const Block block(*blocks[i], pass, work, static_cast<std::int64_t>(i));
    block.run(i + 1 == blocks.size() ? wanted : nullptr);
  }
}

inline std::int64_t dit_block_floats(const std::vector<const BlockSpec*>& blocks, std::int64_t tokens,
                                     std::int64_t width) {
  return Workspace(blocks, width).floats(tokens);
}

}  // namespace ardiff::bindings::dit
