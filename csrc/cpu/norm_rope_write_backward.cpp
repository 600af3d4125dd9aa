// SPDX-License-Identifier: Apache-2.0
// Backward of bias-free QK-norm, RoPE and the page write: dq [T, H, d] and gradients of pages -> dqkv
// [T, (H + 2 Hkv) d], and of the norm's weights and biases.
//
// Floor: qkv, dq, dk and dv are read once and dqkv is written once, 12 bytes per value; a head's values come
// twice more from L1. Mean and reciprocal are computed again: storing them would cost more. A thread works on
// chunks of kBackwardChunk tokens, whose sums over tokens are then added in order, so that the result does
// not depend on the number of threads.
#include "ardiff/modulate.h"
#include "ardiff/norm_rope_write.h"
#include "rope_simd.h"
#include "row_statistics.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

// One of q and k: what its heads were normalised by, and where the sums of its weight and bias go.
struct Part {
  const float *row, *weight;
  float *drow, *dweight, *dbias;
  std::int64_t heads;
};

void head_backward(const NormRopeWriteParams& p, const Part& part, const Angles& angles, std::int64_t head,
                   const float* gradient) {
  const std::int64_t first = head * p.dim;
  const float* z = part.row + first;
  float* dz = part.drow + first;
  const auto value = [z](std::int64_t i, int n) __attribute__((always_inline)) { return load_n(z + i, n); };
  const auto turned_back = [&](std::int64_t i, int n) __attribute__((always_inline)) {
    const Vec g = load_n(gradient + i, n);
    if (!p.frequencies) return g;
    const Vec sine = set(0.0f) - load_n(angles.sine + i, n);
    return rotated(g, load_n(angles.cosine + i, n), swap_pairs(g), sine);
  };
  if (p.norm == HeadNorm::none) {
    for_lanes(0, p.dim, [&](std::int64_t i, int n) __attribute__((always_inline)) {
      store_n(dz + i, turned_back(i, n), n);
    });
    return;
  }
  const bool layer = p.norm == HeadNorm::layer;
  const Statistics s = row_statistics(p.dim, layer, p.eps, value);
  const Vec mean = set(s.mean), reciprocal = set(s.reciprocal);
  Vec sum_g = set(0.0f), sum_gn = set(0.0f);
  for_lanes(0, p.dim, [&](std::int64_t i, int n) __attribute__((always_inline)) {
    const Vec g = turned_back(i, n), normed = normalised(value(i, n), mean, reciprocal);
    store_n(part.dbias + i, load_n(part.dbias + i, n) + g, n);
    store_n(part.dweight + i, load_n(part.dweight + i, n) + g * normed, n);
    const Vec weighted = part.weight ? g * load_n(part.weight + i, n) : g;
    sum_g = sum_g + weighted;
    sum_gn = sum_gn + weighted * normed;
  });
  const float scale = 1.0f / static_cast<float>(p.dim);
  const Vec mean_g = set(layer ? reduce_add(sum_g) * scale : 0.0f), mean_gn = set(reduce_add(sum_gn) * scale);
  for_lanes(0, p.dim, [&](std::int64_t i, int n) __attribute__((always_inline)) {
    const Vec g = turned_back(i, n), normed = normalised(value(i, n), mean, reciprocal);
    const Vec weighted = part.weight ? g * load_n(part.weight + i, n) : g;
    store_n(dz + i, norm_backward(weighted, mean_g, normed, mean_gn, reciprocal), n);
  });
}

void token(const NormRopeWriteBackwardParams& b, std::int64_t t, float* sums) {
  const NormRopeWriteParams& p = b.forward;
  const std::int64_t q_width = p.heads * p.dim, kv_width = p.kv_heads * p.dim, width = q_width + 2 * kv_width;
  const float* row = p.qkv + t * width;
  float* drow = b.dqkv + t * width;
  const Angles angles{p.angles + 2 * t * p.dim, p.angles + (2 * t + 1) * p.dim};
  if (p.frequencies) compute_angles(p.positions + t * p.axes, p.frequencies, p.axes, p.dim, angles);
  const Part q{row, p.q_weight, drow, sums, sums + p.dim, p.heads};
  for (std::int64_t head = 0; head < p.heads; ++head) {
    head_backward(p, q, angles, head, b.dq + t * q_width + head * p.dim);
  }
  if (p.slots[t] < 0) {
    for (std::int64_t i = q_width; i < width; ++i) drow[i] = 0.0f;
    return;
  }
  const std::int64_t offset =
      p.slots[t] / p.page_rows * p.page_stride + p.slots[t] % p.page_rows * p.row_stride;
  const Part k{row + q_width, p.k_weight, drow + q_width, sums + 2 * p.dim, sums + 3 * p.dim, p.kv_heads};
  for (std::int64_t head = 0; head < p.kv_heads; ++head) {
    const std::int64_t at = offset + head * p.head_stride;
    head_backward(p, k, angles, head, p.k_pages + at);
    for_lanes(0, p.dim, [&](std::int64_t i, int n) __attribute__((always_inline)) {
      store_n(drow + q_width + kv_width + head * p.dim + i, load_n(p.v_pages + at + i, n), n);
    });
  }
}

}  // namespace

void norm_rope_write_backward(const NormRopeWriteBackwardParams& b) {
  const NormRopeWriteParams& p = b.forward;
  const std::int64_t chunks = (p.tokens + kBackwardChunk - 1) / kBackwardChunk, count = 4 * p.dim;
  const int threads = threads_for(p.tokens * (p.heads + 2 * p.kv_heads) * p.dim);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    float* sums = b.partial + chunk * count;
    for (std::int64_t i = 0; i < count; ++i) sums[i] = 0.0f;
    const std::int64_t end = (chunk + 1) * kBackwardChunk;
    for (std::int64_t t = chunk * kBackwardChunk; t < end && t < p.tokens; ++t) token(b, t, sums);
  }
  for (std::int64_t i = 0; i < count; ++i) b.daffine[i] = 0.0f;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (std::int64_t i = 0; i < count; ++i) b.daffine[i] += b.partial[chunk * count + i];
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
