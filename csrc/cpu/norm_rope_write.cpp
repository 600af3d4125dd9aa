// SPDX-License-Identifier: Apache-2.0
// Bias, QK-norm, RoPE and the page write in one pass: qkv [T, (H + 2 Hkv) d] -> q [T, H, d], rows of K and V
// pages.
//
// Reads every value from memory once and writes it once: floor 8 bytes per value. The sines of a token are
// computed once and serve all heads. Threads share the tokens; slots are distinct, so they never write the
// same row.
#include "ardiff/norm_rope_write.h"

#include "rope_simd.h"
#include "row_statistics.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

// One of q and k: what normalises and rotates its heads.
struct Part {
  const float *row, *row_bias, *weight, *bias;  // row_bias: of qkv; weight, bias: of the norm
  std::int64_t heads;
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

void token(const NormRopeWriteParams& p, std::int64_t t) {
  const std::int64_t q_width = p.heads * p.dim, kv_width = p.kv_heads * p.dim;
  const float* row = p.qkv + t * (q_width + 2 * kv_width);
  const Angles angles{p.angles + 2 * t * p.dim, p.angles + (2 * t + 1) * p.dim};
  if (p.frequencies) compute_angles(p.positions + t * p.axes, p.frequencies, p.axes, p.dim, angles);
  norm_rope(p, {row, p.qkv_bias, p.q_weight, p.q_bias, p.heads}, angles,
            [&](std::int64_t head) { return p.q + t * q_width + head * p.dim; });
  if (p.kv_heads == 0 || p.slots[t] < 0) return;

  const std::int64_t page = p.slots[t] / p.page_rows, page_row = p.slots[t] % p.page_rows;
  const std::int64_t offset = page * p.page_stride + page_row * p.row_stride;
  norm_rope(p, {row + q_width, p.qkv_bias ? p.qkv_bias + q_width : nullptr, p.k_weight, p.k_bias, p.kv_heads},
            angles, [&](std::int64_t head) { return p.k_pages + offset + head * p.head_stride; });
  const float *v = row + q_width + kv_width, *v_bias = p.qkv_bias ? p.qkv_bias + q_width + kv_width : nullptr;
  for (std::int64_t head = 0; head < p.kv_heads; ++head) {
    float* out = p.v_pages + offset + head * p.head_stride;
    for_lanes(0, p.dim, [&](std::int64_t i, int n) __attribute__((always_inline)) {
      const Vec z = load_n(v + head * p.dim + i, n);
      store_n(out + i, v_bias ? z + load_n(v_bias + head * p.dim + i, n) : z, n);
    });
  }
}

}  // namespace

void norm_rope_write(const NormRopeWriteParams& p) {
  const int threads = threads_for(p.tokens * (p.heads + 2 * p.kv_heads) * p.dim);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t t = 0; t < p.tokens; ++t) token(p, t);
}

}  // namespace ardiff::cpu::ARDIFF_ISA
