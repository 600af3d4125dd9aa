// SPDX-License-Identifier: Apache-2.0
// The formulas of these headers are templates over the value: `float` for one CUDA thread or one element, or
// a vector type that brings +, -, * and fma of its own. These are fma for `float` and `double`.
#pragma once

#include "hd.h"

namespace ardiff {

#if defined(__CUDA_ARCH__)
ARDIFF_HD inline float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
ARDIFF_HD inline double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
#else
ARDIFF_HD inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
ARDIFF_HD inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#endif

}  // namespace ardiff
