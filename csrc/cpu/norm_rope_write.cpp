// SPDX-License-Identifier: Apache-2.0
// Bias, QK-norm, RoPE and the page write in one pass: qkv [T, (H + 2 Hkv) d] -> q [T, H, d], rows of K and V
// pages.
//
// Reads every value from memory once and writes it once: floor 8 bytes per value, where the results are
// streamed (see streaming.h); else 12. The sines of a token are computed once and serve all heads. Threads
// share the tokens; slots are distinct, so they never write the same row.
#include "ardiff/norm_rope_write.h"

#include "rope_simd.h"
#include "row_statistics.h"
#include "streaming.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

// One of q and k: what normalises and rotates its heads.
struct Part {
  const float *row, *row_bias, *weight, *bias;  // row_bias: of qkv; weight, bias: of the norm
  std::int64_t heads;
  std::int64_t row_width;  // of qkv: where the next token's row lies, which is read ahead
};

// destination(head): where a head's d values go
template <class Destination>
ARDIFF_SIMD void norm_rope(const NormRopeWriteParams& p, const Part& part, const Angles& angles,
                           Destination destination) {
  const auto projected = [&part](std::int64_t i, int n) __attribute__((always_inline)) {
    const Vec z = load_n(part.row + i, n);
    return part.row_bias ? z + load_n(part.row_bias + i, n) : z;
  };
  const bool full = p.norm == HeadNorm::rms_full;
  Statistics s{0.0f, 1.0f};
  if (full) s = row_statistics(part.heads * p.dim, false, p.eps, projected);
  for (std::int64_t head = 0; head < part.heads; ++head) {
    const std::int64_t first = head * p.dim, weight_first = full ? first : 0;
    if (p.norm == HeadNorm::layer || p.norm == HeadNorm::rms) {
      s = row_statistics(p.dim, p.norm == HeadNorm::layer, p.eps,
                         [&](std::int64_t i, int n)
                             __attribute__((always_inline)) { return projected(first + i, n); });
    }
    const Vec mean = set(s.mean), reciprocal = set(s.reciprocal);
    const bool norm = p.norm != HeadNorm::none;
    const auto value = [&](std::int64_t i, int n) __attribute__((always_inline)) {
      prefetch(part.row + part.row_width + first + i);
      Vec z = projected(first + i, n);
      if (norm) z = (z - mean) * reciprocal;
      if (part.weight) z = z * load_n(part.weight + weight_first + i, n);
      if (part.bias) z = z + load_n(part.bias + weight_first + i, n);
      return z;
    };
    float* out = destination(head);
    if (p.frequencies) {
      for_lanes(0, p.dim, [&](std::int64_t i, int n) __attribute__((always_inline)) {
        store_n(out + i, rotate_pairs(value(i, n), angles, i, n), n);
      });
    } else {
      for_lanes(0, p.dim, [&](std::int64_t i, int n) __attribute__((always_inline)) {
        store_n(out + i, value(i, n), n);
      });
    }
  }
}

// Where the results of one token go: rows of dim values per head, `stride` apart.
struct Destination {
  float *q, *k, *v;  // k and v null: not written
  std::int64_t q_stride, kv_stride;
};

void token(const NormRopeWriteParams& p, std::int64_t t, const Destination& to) {
  const std::int64_t q_width = p.heads * p.dim, kv_width = p.kv_heads * p.dim;
  const std::int64_t row_width = q_width + 2 * kv_width;
  const float* row = p.qkv + t * row_width;
  const Angles angles{p.angles + 2 * t * p.dim, p.angles + (2 * t + 1) * p.dim};
  if (p.frequencies) compute_angles(p.positions[t], p.frequencies, p.dim, angles);
  norm_rope(p, {row, p.qkv_bias, p.q_weight, p.q_bias, p.heads, row_width}, angles,
            [&](std::int64_t head) { return to.q + head * to.q_stride; });
  if (!to.k) return;

  const float* k_bias = p.qkv_bias ? p.qkv_bias + q_width : nullptr;
  norm_rope(p, {row + q_width, k_bias, p.k_weight, p.k_bias, p.kv_heads, row_width}, angles,
            [&](std::int64_t head) { return to.k + head * to.kv_stride; });
  const float *v = row + q_width + kv_width, *v_bias = p.qkv_bias ? p.qkv_bias + q_width + kv_width : nullptr;
  for (std::int64_t head = 0; head < p.kv_heads; ++head) {
    float* out = to.v + head * to.kv_stride;
    for_lanes(0, p.dim, [&](std::int64_t i, int n) __attribute__((always_inline)) {
      const Vec z = load_n(v + head * p.dim + i, n);
      prefetch(v + row_width + head * p.dim + i);
      store_n(out + i, v_bias ? z + load_n(v_bias + head * p.dim + i, n) : z, n);
    });
  }
}

std::int64_t page_offset(const NormRopeWriteParams& p, std::int64_t t) {
  return p.slots[t] / p.page_rows * p.page_stride + p.slots[t] % p.page_rows * p.row_stride;
}

void write(const NormRopeWriteParams& p, std::int64_t t) {
  Destination to{p.q + t * p.heads * p.dim, nullptr, nullptr, p.dim, p.head_stride};
  if (p.slots[t] >= 0) {
    to.k = p.k_pages + page_offset(p, t);
    to.v = p.v_pages + page_offset(p, t);
  }
  token(p, t, to);
}

constexpr std::int64_t kLine = 16;       // floats of a cache line
constexpr std::int64_t kScratch = 8192;  // floats; larger rows are not streamed

// How many tokens together fill whole cache lines of a page row by row; 0: their results cannot be streamed.
std::int64_t streamed_together(const NormRopeWriteParams& p) {
  const std::int64_t row_width = (p.heads + 2 * p.kv_heads) * p.dim;
  const std::int64_t group = p.dim % kLine == 0 ? 1 : 2;
  const auto aligned = [](const float* a) { return reinterpret_cast<std::uintptr_t>(a) % 64 == 0; };
  const bool whole = group * p.dim % kLine == 0 && p.page_rows % group == 0 && p.row_stride == p.dim &&
                     p.head_stride % kLine == 0 && p.page_stride % kLine == 0 && p.heads * p.dim % kLine == 0;
  const bool fits = group * row_width <= kScratch;
  const bool large = worth_streaming(p.q, 2 * p.tokens * row_width);
  return whole && fits && large && aligned(p.q) && aligned(p.k_pages) && aligned(p.v_pages) ? group : 0;
}

ARDIFF_SIMD void stream_row(float* to, const float* from, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += Vec::width) stream(to + i, load(from + i));
}

// `group` tokens from t on: computed into L1, then streamed in whole lines. Heads of 72 values end within a
// line; half-written lines would be read from memory first, which is what streaming is to avoid.
void write_streamed(const NormRopeWriteParams& p, std::int64_t t, std::int64_t group) {
  bool neighbours = p.slots[t] >= 0 && p.slots[t] % group == 0;
  for (std::int64_t i = 1; i < group; ++i) neighbours = neighbours && p.slots[t + i] == p.slots[t] + i;
  if (!neighbours) {
    for (std::int64_t i = 0; i < group; ++i) write(p, t + i);
    return;
  }
  const std::int64_t q_width = p.heads * p.dim, kv_width = p.kv_heads * p.dim, block = group * p.dim;
  alignas(64) float scratch[kScratch];
  float *q = scratch, *k = q + group * q_width, *v = k + group * kv_width;
  for (std::int64_t i = 0; i < group; ++i) {
    token(p, t + i, {q + i * q_width, k + i * p.dim, v + i * p.dim, p.dim, block});
  }
  stream_row(p.q + t * q_width, q, group * q_width);
  for (std::int64_t head = 0; head < p.kv_heads; ++head) {
    const std::int64_t offset = page_offset(p, t) + head * p.head_stride;
    stream_row(p.k_pages + offset, k + head * block, block);
    stream_row(p.v_pages + offset, v + head * block, block);
  }
}

}  // namespace

void norm_rope_write(const NormRopeWriteParams& p) {
  const int threads = threads_for(p.tokens * (p.heads + 2 * p.kv_heads) * p.dim);
  const std::int64_t group = streamed_together(p), groups = group ? p.tokens / group : 0;
  share_rows(groups, threads, [&p, group](std::int64_t i) { write_streamed(p, i * group, group); });
  const std::int64_t done = groups * group;
  share_rows(p.tokens - done, threads, [&p, done](std::int64_t i) { write(p, done + i); });
}

}  // namespace ardiff::cpu::ARDIFF_ISA
