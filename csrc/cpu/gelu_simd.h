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
