// SPDX-License-Identifier: Apache-2.0
// GELU and its derivative on vectors (ardiff/bias_gelu.h has the formulas).
#pragma once

#include "ardiff/bias_gelu.h"
#include "simd.h"

namespace ardiff::cpu::ARDIFF_ISA {

// `exp` ends at e^88.7, so a numerator without a limit would not vanish for -1e38. Minus infinity is NaN, as
// in PyTorch: it comes from an overflow, which a finite result would hide.
ARDIFF_SIMD Vec gelu(Vec z) {
  const Vec near = max(set(-40.0f), z);
  const Vec e = exp(gelu_exponent(near, set(kGeluCubic), set(kGeluFactor)));
  return nan_at_minus_infinity(near, z) / (set(1.0f) + e);
}

// z Phi(z), Phi the distribution of the normal variable: 1/2 (1 + erf(z / sqrt 2)). erf by a quotient of odd
// and even polynomials on [-4, 4], where it reaches 1 in float; within 3e-7 of the true value.
ARDIFF_SIMD Vec gelu_erf(Vec z) {
  const Vec x = max(set(-4.0f), min(set(4.0f), z * set(0.70710678118654752f))), square = x * x;
  Vec over = set(-2.72614225801306e-10f);
  over = fma(over, square, set(2.77068142495902e-08f));
  over = fma(over, square, set(-2.10102402082508e-06f));
  over = fma(over, square, set(-5.69250639462346e-05f));
  over = fma(over, square, set(-7.34990630326855e-04f));
  over = fma(over, square, set(-2.95459980854025e-03f));
  over = fma(over, square, set(-1.60960333262415e-02f));
  Vec under = set(-1.45660718464996e-05f);
  under = fma(under, square, set(-2.13374055278905e-04f));
  under = fma(under, square, set(-1.68282697438203e-03f));
  under = fma(under, square, set(-7.37332916720468e-03f));
  under = fma(under, square, set(-1.42647390514189e-02f));
  const Vec near = nan_at_minus_infinity(max(set(-40.0f), z), z);
  return set(0.5f) * near * max(set(0.0f), set(1.0f) + x * over / under);
}

ARDIFF_SIMD Vec silu(Vec z) {
  const Vec near = max(set(-80.0f), z);  // e^88.7 is the last one
  return nan_at_minus_infinity(near, z) / (set(1.0f) + exp(set(0.0f) - near));
}

// Beyond 40 on either side the derivative is 1 and 0; without the limits z^2 would meet 0 as infinity. It is
// NaN at both infinities.
ARDIFF_SIMD Vec gelu_derivative(Vec z) {
  z = nan_at_infinities(max(set(-40.0f), min(set(40.0f), z)), z);
  const Vec e = exp(gelu_exponent(z, set(kGeluCubic), set(kGeluFactor)));
  const Vec s = set(1.0f) / (set(1.0f) + e);
  const Vec slope = z * fma(set(3.0f * kGeluCubic), z * z, set(kGeluFactor));
  return s * (set(1.0f) - slope * (e * s));
}

}  // namespace ardiff::cpu::ARDIFF_ISA
