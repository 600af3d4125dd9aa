// SPDX-License-Identifier: Apache-2.0
// What frame attention is given, on any device: softmax(scale q k^T + bias) v over lists of pages.
//
// Query tokens are packed along T. Query frame f owns tokens frame_ptr[f] .. frame_ptr[f+1]; group g owns
// query frames group_ptr[g] .. group_ptr[g+1] and page entries page_ptr[g] .. page_ptr[g+1]. Frame f sees the
// first seen[f] entries of its group. Entry e is page pages[e], of which rows 0 .. valid[e] exist; its logits
// get bias[e] (null: 0).
#pragma once

#include "hd.h"
#include "integers.h"

namespace ardiff {

// Strides are in elements; the head dimension is dense everywhere. Tensors of another storage type
// (ardiff/storage.h) are passed as float*, with strides in elements of that type.
struct FrameAttentionParams {
  const float* q;  // [T, H, D]
  const float* k;  // [P, Hkv, R, D]
  const float* v;  // [P, Hkv, R, D]
  float* o;        // [T, H, D], dense
  float* lse;      // [T, H], dense; natural log; -infinity for an empty view
  const std::int32_t *frame_ptr, *group_ptr, *page_ptr, *pages, *valid, *seen;
  const float* bias;  // [E] or null
  std::int64_t groups, heads, kv_heads, dim, num_pages, page_rows;
  std::int64_t q_token, q_head;
  std::int64_t k_page, k_head, k_row;
  std::int64_t v_page, v_head, v_row;
  float scale;
  std::int64_t row_heads;  // heads of a row of o and lse, where this call writes H of them; 0: H
};

// With P = exp(S - lse) and delta = rowsum(do * o) - dlse:  dS = P * (do v^T - delta),  dq = scale dS k,
// dk = scale dS^T q,  dv = P^T do. In `forward`, o and lse are read.
struct FrameAttentionBackwardParams {
  FrameAttentionParams forward;
  const float* dout;  // [T, H, D], dense
  const float* dlse;  // [T, H], dense, or null
  float* dq;          // [T, H, D], dense
  float *dk, *dv;     // [P, Hkv, R, D], dense, zero on entry
};

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.69314718055994531f;

}  // namespace ardiff
