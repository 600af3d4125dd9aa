// SPDX-License-Identifier: Apache-2.0
// Copies and rotations of whole pages of the pool [layers, P, H, R, d]; a page [H, R, d] is dense.
#pragma once

#include "integers.h"
#include "rope.h"

namespace ardiff {

template <class T>
struct CopyPagesParamsOf {
  T *k_pages, *v_pages;
  const std::int64_t *src, *dst;                          // [count]
  std::int64_t count, layers, pool_pages, page_elements;  // page_elements = H * R * d
  std::int64_t layer_stride, page_stride;
};
using CopyPagesParams = CopyPagesParamsOf<float>;

template <class T>
struct RotatePagesParamsOf {
  T* k_pages;
  const T* source;                     // [layers, count, H, R, d], or null: the pages themselves
  const std::int64_t *pages, *deltas;  // [count]
  const double* frequencies;           // [dim / 2]
  float* angles;                       // [count, 2, dim] workspace of the CPU kernel, or null
  std::int64_t count, layers, pool_pages, rows, dim;  // rows = H * R
  std::int64_t layer_stride, page_stride, source_layer_stride, source_page_stride;
};
using RotatePagesParams = RotatePagesParamsOf<float>;

}  // namespace ardiff
