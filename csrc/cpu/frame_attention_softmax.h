// SPDX-License-Identifier: Apache-2.0
// From logits to weights, down the lanes: bias, visibility, and the online softmax in base 2 (scale * log2(e)
// is folded into the tile, so that logits arrive in units of log 2).
//
// About 12 instructions per vector of logits, against 4 D FMAs for its products: a twentieth of the time at
// D = 128, a twelfth at D = 64.
#pragma once

#include "frame_attention_tile.h"

namespace ardiff::cpu::ARDIFF_ISA {

constexpr float kInfinity = __builtin_inff();

// 2^x for x <= 1, relative error 1.7e-7; 0 below the smallest normal number and for -infinity; NaN stays NaN.
// One term less than exp2 of simd.h, and no upper clamp: a logit minus its maximum needs neither. Minimax
// fit.
ARDIFF_SIMD Vec exp2_weight(Vec x) {
#if defined(ARDIFF_ISA_avx512)
  const Vec r = {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
#elif defined(ARDIFF_ISA_avx2)
  // Adding 1.5 * 2^23 + 127 rounds x, and leaves the exponent field of 2^round(x) in the lowest bits.
  const Vec magic = set(12583039.0f);
  x = max(set(-127.0f), x);
  const Vec shifted = x + magic, r = x - (shifted - magic);
#else
  x = max(set(-127.0f), x);
  const Vec n = round(x), r = x - n;
#endif
  Vec y = set(1.3264727e-3f);
  y = fma(y, r, set(9.671513e-3f));
  y = fma(y, r, set(5.5507336e-2f));
  y = fma(y, r, set(2.4022242e-1f));
  y = fma(y, r, set(6.93147e-1f));
  y = fma(y, r, set(1.0f));
#if defined(ARDIFF_ISA_avx512)
  return {_mm512_scalef_ps(y.v, (x - r).v)};
#elif defined(ARDIFF_ISA_avx2)
  const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23);
  return y * Vec{_mm256_castsi256_ps(power)};
#else
  return scale_by_power(y, n);
#endif
}

// logits += bias; -infinity where a lane does not see the run.
template <int V>
static void bias_and_mask(const Run* runs, int count, int shared, const Vec* limit, float* s) {
  constexpr int M = V * Vec::width;
  for (int r = 0; r < count; ++r) {
    if (r < shared && runs[r].bias == 0.0f) continue;
    const Vec bias = set(runs[r].bias), entry = set(static_cast<float>(runs[r].entry)),
              hidden = set(-kInfinity);
    float* row = s + runs[r].at * M;
    for (int n = 0; n < runs[r].rows; ++n, row += M) {
      for (int v = 0; v < V; ++v) {
        const Vec logit = load(row + v * Vec::width) + bias;
        store(row + v * Vec::width, r < shared ? logit : select_less(entry, limit[v], logit, hidden));
      }
    }
  }
}

// A lane that has seen nothing yet has the maximum -infinity; shift by 0 then, so that weights are 0, not
// NaN.
ARDIFF_SIMD Vec softmax_shift(Vec top) { return select_less(set(-kInfinity), top, top, set(0.0f)); }

// Per lane: s <- 2^(s - m') with the new maximum m', l <- alpha l + sum, alpha = 2^(m - m'), m <- m'. The
// vectors go side by side: one maximum alone waits 4 cycles per row for the one before.
template <int V>
static void softmax_block(int rows, float* s, Vec* m, Vec* l, Vec* alpha) {
  constexpr int M = V * Vec::width;
  Vec top[V], shift[V], sum[V];
#pragma GCC unroll 3
  for (int v = 0; v < V; ++v) top[v] = m[v];
  for (int n = 0; n < rows; ++n) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) top[v] = max(top[v], load(s + n * M + v * Vec::width));
  }
#pragma GCC unroll 3
  for (int v = 0; v < V; ++v) {
    shift[v] = softmax_shift(top[v]);
    alpha[v] = exp2_weight(m[v] - shift[v]);
    m[v] = top[v];
    sum[v] = l[v] * alpha[v];
  }
  for (int n = 0; n < rows; ++n) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      const Vec e = exp2_weight(load(s + n * M + v * Vec::width) - shift[v]);
      store(s + n * M + v * Vec::width, e);
      sum[v] = sum[v] + e;
    }
  }
#pragma GCC unroll 3
  for (int v = 0; v < V; ++v) l[v] = sum[v];
}

}  // namespace ardiff::cpu::ARDIFF_ISA
