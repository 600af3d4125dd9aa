// SPDX-License-Identifier: Apache-2.0
// Normalisation with a shift and scale row per frame: y = n (1 + scale) + shift, n = (x - mean) * reciprocal.
//
// Backward, with g = dy (1 + scale) + dnormed:  layer dx = reciprocal (g - mean(g) - n mean(g n)),
// rms dx = reciprocal (g - n mean(g n)),  dshift = sum of dy and dscale = sum of dy n over the tokens of a
// row.
#pragma once

#include "integers.h"
#include "scalar.h"

namespace ardiff {

enum class RowNorm { none = 0, layer = 1, rms = 2 };

template <class V>
ARDIFF_HD inline V normalised(V x, V mean, V reciprocal) {
  return (x - mean) * reciprocal;
}

template <class V>
ARDIFF_HD inline V modulated(V n, V one_plus_scale, V shift) {
  return fma(n, one_plus_scale, shift);
}

template <class V>
ARDIFF_HD inline V norm_backward(V g, V mean_g, V n, V mean_gn, V reciprocal) {
  return reciprocal * (g - mean_g - n * mean_gn);
}

template <class T>
struct ModulateParamsOf {
  const T* x;                     // [tokens, width]
  const T *shift, *scale;         // [rows, width], rows strided
  const std::int32_t* frame_ids;  // [tokens]
  T *y, *normed;                  // [tokens, width]; normed may be null
  std::int64_t tokens, width, rows, shift_stride, scale_stride;
  RowNorm norm;
  float eps;
};
using ModulateParams = ModulateParamsOf<float>;

struct ModulateBackwardParams {
  const float *dy, *dnormed, *x;  // [tokens, width]; dnormed may be null
  const float* scale;             // [rows, width], rows strided
  const std::int32_t* frame_ids;  // [tokens]
  float* dx;                      // [tokens, width]
  float *dshift, *dscale;         // [rows, width]
  std::int64_t tokens, width, rows, scale_stride;
  RowNorm norm;
  float eps;
};

}  // namespace ardiff
