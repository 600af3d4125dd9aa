// SPDX-License-Identifier: Apache-2.0
// y = gelu(x + bias), the tanh form, written with one exponential:
//
//   gelu(z) = z s,  s = 1 / (1 + e),  e = exp(E),  E = -2 sqrt(2/pi) (z + 0.044715 z^3)
//   gelu'(z) = s - z s (1 - s) E'                  E' = -2 sqrt(2/pi) (1 + 3 * 0.044715 z^2)
//
// gelu(-inf) is NaN, and so is gelu' at both infinities, as in PyTorch.
//
// Backward: dx = dy gelu'(x + bias), dbias = sum of dx over the tokens.
#pragma once

#include "integers.h"
#include "scalar.h"

namespace ardiff {

constexpr float kGeluFactor = -1.5957691216057308f;  // -2 sqrt(2/pi)
constexpr float kGeluCubic = -1.5957691216057308f * 0.044715f;

template <class V>
ARDIFF_HD inline V gelu_exponent(V z, V cubic, V factor) {
  return z * fma(cubic, z * z, factor);
}

struct BiasGeluParams {
  const float* x;     // [tokens, width]
  const float* bias;  // [width] or null
  float* y;           // [tokens, width]
  std::int64_t tokens, width;
};

struct BiasGeluBackwardParams {
  const float *dy, *x;  // [tokens, width]
  const float* bias;    // [width] or null
  float *dx, *dbias;    // [tokens, width]; [width], null without a bias
  std::int64_t tokens, width;
};

}  // namespace ardiff
