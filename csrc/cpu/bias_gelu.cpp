// SPDX-License-Identifier: Apache-2.0
// Bias and GELU in one pass, x [T, D] -> y [T, D], and its backward pass, dy, x [T, D] -> dx [T, D],
// dbias [D].
//
// Floor: 8 and 12 bytes per element; an exponential and a division take about 20 instructions, 26 in the
// backward pass. Threads share the rows forward; backward they own columns and add the tokens in order
// (columns.h), so that dbias does not depend on their number.
#include "columns.h"
#include "gelu_simd.h"
#include "streaming.h"

namespace ardiff::cpu::ARDIFF_ISA {

void bias_gelu(const BiasGeluParams& p) {
  share_rows(p.tokens, threads_for(p.tokens * p.width), [&p](std::int64_t t) __attribute__((always_inline)) {
    const float* x = p.x + t * p.width;
    float* y = p.y + t * p.width;
    for_lanes(0, p.width, [&](std::int64_t i, int n) __attribute__((always_inline)) {
      const Vec z = load_n(x + i, n);
      store_n(y + i, gelu(p.bias ? z + load_n(p.bias + i, n) : z), n);
    });
  });
}

void bias_gelu_backward(const BiasGeluBackwardParams& p) {
  for_columns(p.tokens, p.width, [&p](std::int64_t begin, std::int64_t end) {
    if (p.bias) {
      for_lanes(begin, end, [&](std::int64_t i, int n) { store_n(p.dbias + i, set(0.0f), n); });
    }
    for (std::int64_t t = 0; t < p.tokens; ++t) {
      const float *x = p.x + t * p.width, *dy = p.dy + t * p.width;
      float* dx = p.dx + t * p.width;
      for_lanes(begin, end, [&](std::int64_t i, int n) __attribute__((always_inline)) {
        Vec z = load_n(x + i, n);
        if (p.bias) z = z + load_n(p.bias + i, n);
        const Vec d = load_n(dy + i, n) * gelu_derivative(z);
        store_n(dx + i, d, n);
        if (p.bias) store_n(p.dbias + i, load_n(p.dbias + i, n) + d, n);
      });
    }
  });
}

}  // namespace ardiff::cpu::ARDIFF_ISA
