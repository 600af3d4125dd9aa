// SPDX-License-Identifier: Apache-2.0
// Copies and rotations of whole pages of the pool [layers, P, H, R, d]; a page [H, R, d] is dense.
#pragma once

#include <cstdint>

#include "rope.h"

namespace ardiff {

struct CopyPagesParams {
  float *k_pages, *v_pages;
  const std::int64_t *src, *dst;  // [count]
  std::int64_t count, layers, page_elements, layer_stride, page_stride;
};

struct RotatePagesParams {
  float* k_pages;
  const float* source;                    // [layers, count, H, R, d], or null: the pages themselves
  const std::int64_t *pages, *deltas;     // [count]
  const double* frequencies;              // [dim / 2]
  float* angles;                          // [count, 2, dim] workspace
  std::int64_t count, layers, rows, dim;  // rows = H * R
  std::int64_t layer_stride, page_stride, source_layer_stride, source_page_stride;
};

}  // namespace ardiff
