// SPDX-License-Identifier: Apache-2.0
// Rows of the pool [layers, P, H, R, d] that become weighted sums of other rows; a page [H, R, d] is dense.
//
//   row targets[n] = sum over j of weights[j] row sources[n, j]
//
// Row r of page p is row p R + r of the pool.
// A source of -1 is left out. Without weights: the mean of those that are there.
#pragma once

#include "integers.h"
#include "scalar.h"

namespace ardiff {

template <class V>
ARDIFF_HD inline V pooled(V sum, V weight, V row) {
  return fma(weight, row, sum);
}

template <class T>
struct PoolPagesParamsOf {
  T* pages;
  const std::int64_t *sources, *targets;  // [count, taps], [count]
  const float* weights;                   // [layers, taps, heads, dim], layers strided; or null
  std::int64_t count, taps, layers, pool_pages, heads, page_rows, dim;
  std::int64_t layer_stride, page_stride, weight_stride;

  // Where the first head's part of a row lies in its layer; heads are page_rows dim apart.
  ARDIFF_HD std::int64_t offset(std::int64_t row) const {
    return row / page_rows * page_stride + row % page_rows * dim;
  }
};
using PoolPagesParams = PoolPagesParamsOf<float>;

}  // namespace ardiff
