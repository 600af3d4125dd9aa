// SPDX-License-Identifier: Apache-2.0
// Backward of modulate: dy, x [T, D] -> dx [T, D], dshift and dscale [M, D].
//
// One pass over memory. Neighbouring tokens of one table row form a run, whose sums stay in L1 beside the
// rows; then the runs are added in token order. Runs end at a change of the id and after kRunTokens, whatever
// the number of threads, and so do the bits of the sums. Floor: 12 bytes per element; the sums of runs add
// 16 / kRunTokens bytes, more where ids change more often.
#include "ardiff/modulate.h"
#include "columns.h"
#include "row_statistics.h"
#include "scratch.h"
#include "streaming.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

constexpr std::int64_t kRunTokens = 64;

// dx of one token; adds dy and dy n to the sums of its run.
template <bool streaming>
ARDIFF_SIMD void row(const ModulateBackwardParams& p, std::int64_t t, float* shift_sum, float* scale_sum) {
  const std::int64_t offset = t * p.width;
  const float *x = p.x + offset, *dy = p.dy + offset, *dnormed = p.dnormed ? p.dnormed + offset : nullptr;
  const float* scale = p.scale + p.frame_ids[t] * p.scale_stride;
  Statistics s{0.0f, 1.0f};
  if (p.norm != RowNorm::none) {
    s = row_statistics(p.width, p.norm == RowNorm::layer, p.eps,
                       [x](std::int64_t i, int n)
                           __attribute__((always_inline)) { return load_n(x + i, n); });
  }
  const Vec mean = set(s.mean), reciprocal = set(s.reciprocal), one = set(1.0f);
  const auto gradient = [&](std::int64_t i, int n) __attribute__((always_inline)) {
    const Vec g = load_n(dy + i, n) * (one + load_n(scale + i, n));
    return dnormed ? g + load_n(dnormed + i, n) : g;
  };
  const auto normal = [&](std::int64_t i, int n) __attribute__((always_inline)) {
    return normalised(load_n(x + i, n), mean, reciprocal);
  };
  Vec sum_g = set(0.0f), sum_gn = sum_g;
  for_lanes(0, p.width, [&](std::int64_t i, int n) __attribute__((always_inline)) {
    const Vec d = load_n(dy + i, n), g = gradient(i, n), v = normal(i, n);
    sum_g = sum_g + g;
    sum_gn = fma(g, v, sum_gn);  // beyond n, g is 0
    store_n(shift_sum + i, load_n(shift_sum + i, n) + d, n);
    store_n(scale_sum + i, fma(d, v, load_n(scale_sum + i, n)), n);
  });
  const float share = 1.0f / static_cast<float>(p.width);
  const Vec mean_g = set(p.norm == RowNorm::layer ? share * reduce_add(sum_g) : 0.0f),
            mean_gn = set(p.norm == RowNorm::none ? 0.0f : share * reduce_add(sum_gn));
  for_lanes(0, p.width, [&](std::int64_t i, int n) __attribute__((always_inline)) {
    prefetch(x + p.width + i);
    prefetch(dy + p.width + i);
    put_n<streaming>(p.dx + offset + i,
                     norm_backward(gradient(i, n), mean_g, normal(i, n), mean_gn, reciprocal), n);
  });
}

void clear(float* row, std::int64_t begin, std::int64_t end) {
  for_lanes(begin, end, [=](std::int64_t i, int n) { store_n(row + i, set(0.0f), n); });
}

void add(float* row, const float* more, std::int64_t begin, std::int64_t end) {
  for_lanes(begin, end, [=](std::int64_t i, int n) __attribute__((always_inline)) {
    store_n(row + i, load_n(row + i, n) + load_n(more + i, n), n);
  });
}

// Writes where each run begins, and the number of tokens at the end; returns the number of runs.
std::int64_t cut_runs(const ModulateBackwardParams& p, std::int64_t* starts) {
  std::int64_t runs = 0;
  for (std::int64_t t = 0; t < p.tokens; ++t) {
    if (t == 0 || p.frame_ids[t] != p.frame_ids[t - 1] || t - starts[runs - 1] == kRunTokens) {
      starts[runs++] = t;
    }
  }
  starts[runs] = p.tokens;
  return runs;
}

}  // namespace

void modulate_backward(const ModulateBackwardParams& p) {
  Scratch list((p.tokens + 1) * static_cast<std::int64_t>(sizeof(std::int64_t)));
  std::int64_t* starts = list.take<std::int64_t>(p.tokens + 1);
  const std::int64_t runs = cut_runs(p, starts), size = 2 * runs * p.width;
  Scratch memory(size * static_cast<std::int64_t>(sizeof(float)));
  float* sums = memory.take<float>(size);  // [runs][2][width]: of dy, and of dy n
  const std::int64_t values = p.tokens * p.width * (p.dnormed ? 4 : 3);
  const bool streaming = p.width % Vec::width == 0 && worth_streaming(p.dx, values);

  share_rows(runs, threads_for(p.tokens * p.width), [&](std::int64_t run) {
    float *shift_sum = sums + 2 * run * p.width, *scale_sum = shift_sum + p.width;
    clear(shift_sum, 0, 2 * p.width);
    for (std::int64_t t = starts[run]; t < starts[run + 1]; ++t) {
      streaming ? row<true>(p, t, shift_sum, scale_sum) : row<false>(p, t, shift_sum, scale_sum);
    }
  });

  for_columns(runs, p.width, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = 0; r < p.rows; ++r) {
      clear(p.dshift + r * p.width, begin, end);
      clear(p.dscale + r * p.width, begin, end);
    }
    for (std::int64_t run = 0; run < runs; ++run) {
      const std::int64_t to = p.frame_ids[starts[run]] * p.width;
      const float* from = sums + 2 * run * p.width;
      add(p.dshift + to, from, begin, end);
      add(p.dscale + to, from + p.width, begin, end);
    }
  });
}

}  // namespace ardiff::cpu::ARDIFF_ISA
