// SPDX-License-Identifier: Apache-2.0
// The formulas of these headers are templates over the value: `float` for one CUDA thread or one element, or
// a vector type that brings +, -, * and fma of its own. This is fma for `float`.
#pragma once

#include "hd.h"

namespace ardiff {

ARDIFF_HD inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

}  // namespace ardiff
