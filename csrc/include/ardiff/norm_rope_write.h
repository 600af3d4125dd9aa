// SPDX-License-Identifier: Apache-2.0
// Bias, QK-norm, RoPE, and the write of K and V into pages. A row of qkv is [q heads | k heads | v heads];
// without kv_heads (CPU only) it is q alone.
#pragma once

#include "integers.h"
#include "rope.h"

namespace ardiff {

enum class HeadNorm { none = 0, layer = 1, rms = 2, rms_full = 3 };

template <class T>
struct NormRopeWriteParamsOf {
  const T* qkv;                                    // [tokens, (heads + 2 kv_heads) dim]
  T *k_pages, *v_pages;                            // [pages, kv_heads, page_rows, dim], strided, dim dense
  const std::int64_t *slots, *positions;           // [tokens], [tokens, axes]; slot -1: do not write
  T* q;                                            // [tokens, heads, dim]
  const T *q_weight, *q_bias, *k_weight, *k_bias;  // [dim], or [all heads * dim] for rms_full; may be null
  const T* qkv_bias;                               // like a row of qkv, or null
  const double* frequencies;                       // [axes, dim / 2] or null: no rotation
  float* angles;                                   // [tokens, 2, dim] workspace of the CPU kernel, or null
  std::int64_t tokens, heads, kv_heads, dim, axes, pages, page_rows;
  std::int64_t page_stride, head_stride, row_stride;
  HeadNorm norm;
  float eps;
};
using NormRopeWriteParams = NormRopeWriteParamsOf<float>;

// The gradient of qkv, weights and biases, given that of q and of the pages. Of `forward`, q and qkv_bias are
// not read; k_pages and v_pages are the gradients of the pages. norm: all but rms_full.
// With g the gradient turned back by the angle: dweight = sum of g n, dbias = sum of g over tokens and heads;
// n = (z - mean) reciprocal and dz as in ardiff/modulate.h.
struct NormRopeWriteBackwardParams {
  NormRopeWriteParams forward;
  const float* dq;  // [tokens, heads, dim]
  float* dqkv;      // [tokens, (heads + 2 kv_heads) dim]
  float* daffine;   // [4, dim]: q_weight, q_bias, k_weight, k_bias
  float* partial;   // [ceil(tokens / kBackwardChunk), 4, dim] workspace
};
constexpr std::int64_t kBackwardChunk = 64;  // tokens that are summed first: sums do not depend on threads

}  // namespace ardiff
