// SPDX-License-Identifier: Apache-2.0
// Bias, QK-norm, RoPE, and the write of K and V into pages. A row of qkv is [q heads | k heads | v heads].
#pragma once

#include <cstdint>

#include "rope.h"

namespace ardiff {

enum class HeadNorm { none = 0, layer = 1, rms = 2, rms_full = 3 };

struct NormRopeWriteParams {
  const float* qkv;                       // [tokens, (heads + 2 kv_heads) dim]
  float *k_pages, *v_pages;               // [P, kv_heads, page_rows, dim], strided, dim dense
  const std::int64_t *slots, *positions;  // [tokens]; slot -1: do not write
  float* q;                               // [tokens, heads, dim]
  const float *q_weight, *q_bias, *k_weight,
      *k_bias;                // [dim], or [all heads * dim] for rms_full; may be null
  const float* qkv_bias;      // like a row of qkv, or null
  const double* frequencies;  // [dim / 2] or null: no rotation
  float* angles;              // [tokens, 2, dim] workspace; unused without frequencies
  std::int64_t tokens, heads, kv_heads, dim, page_rows;
  std::int64_t page_stride, head_stride, row_stride;
  HeadNorm norm;
  float eps;
};

}  // namespace ardiff
