// SPDX-License-Identifier: Apache-2.0
// Backward of modulate: dy, x [T, D] -> dx [T, D], dshift and dscale [M, D].
//
// Pass 1 owns rows: statistics and dx. Pass 2 owns columns and adds the tokens of each table row in token
// order, so that the sums do not depend on the number of threads. Reads x and dy twice: floor 20 bytes per
// element.
#include "ardiff/modulate.h"
#include "columns.h"
#include "row_statistics.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

void row(const ModulateBackwardParams& p, std::int64_t t) {
  const std::int64_t offset = t * p.width;
  const float *x = p.x + offset, *dy = p.dy + offset, *dnormed = p.dnormed ? p.dnormed + offset : nullptr;
  const float* scale = p.scale + p.frame_ids[t] * p.scale_stride;
  Statistics s{0.0f, 1.0f};
  if (p.norm != RowNorm::none) {
    s = row_statistics(p.width, p.norm == RowNorm::layer, p.eps,
                       [x](std::int64_t i, int n)
                           __attribute__((always_inline)) { return load_n(x + i, n); });
  }
  p.statistics[2 * t] = s.mean;
  p.statistics[2 * t + 1] = s.reciprocal;
  const Vec mean = set(s.mean), reciprocal = set(s.reciprocal), one = set(1.0f);
  const auto gradient = [&](std::int64_t i, int n) __attribute__((always_inline)) {
    const Vec g = load_n(dy + i, n) * (one + load_n(scale + i, n));
    return dnormed ? g + load_n(dnormed + i, n) : g;
  };
  const auto normal = [&](std::int64_t i, int n) __attribute__((always_inline)) {
    return normalised(load_n(x + i, n), mean, reciprocal);
  };
  Vec mean_g = set(0.0f), mean_gn = mean_g;
  const float share = 1.0f / static_cast<float>(p.width);
  if (p.norm == RowNorm::layer) mean_g = set(share * sum_lanes(p.width, gradient));
  if (p.norm != RowNorm::none) {
    mean_gn = set(share * sum_lanes(p.width, [&](std::int64_t i, int n) __attribute__((always_inline)) {
                    return gradient(i, n) * normal(i, n);
                  }));
  }
  for_lanes(0, p.width, [&](std::int64_t i, int n) __attribute__((always_inline)) {
    store_n(p.dx + offset + i, norm_backward(gradient(i, n), mean_g, normal(i, n), mean_gn, reciprocal), n);
  });
}

}  // namespace

void modulate_backward(const ModulateBackwardParams& p) {
  const int threads = threads_for(p.tokens * p.width);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t t = 0; t < p.tokens; ++t) row(p, t);

  for_columns(p.tokens, p.width, [&p](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = 0; r < p.rows; ++r) {
      for_lanes(begin, end, [&](std::int64_t i, int n) {
        store_n(p.dshift + r * p.width + i, set(0.0f), n);
        store_n(p.dscale + r * p.width + i, set(0.0f), n);
      });
    }
    for (std::int64_t t = 0; t < p.tokens; ++t) {
      const float *x = p.x + t * p.width, *dy = p.dy + t * p.width;
      float *dshift = p.dshift + p.frame_ids[t] * p.width, *dscale = p.dscale + p.frame_ids[t] * p.width;
      const Vec mean = set(p.statistics[2 * t]), reciprocal = set(p.statistics[2 * t + 1]);
      for_lanes(begin, end, [&](std::int64_t i, int n) __attribute__((always_inline)) {
        const Vec g = load_n(dy + i, n), v = normalised(load_n(x + i, n), mean, reciprocal);
        store_n(dshift + i, load_n(dshift + i, n) + g, n);
        store_n(dscale + i, fma(g, v, load_n(dscale + i, n)), n);
      });
    }
  });
}

}  // namespace ardiff::cpu::ARDIFF_ISA
