// SPDX-License-Identifier: Apache-2.0
// Adds up the parts of a tile: o = sum_i exp(lse_i - lse) o_i, lse = log sum_i exp(lse_i), i in key order.
//
// Grid: merges x kv heads. A warp takes a row, its lanes the columns. Reads each partial result once: 4 (D +
// 1) bytes per row and part, from the L2 cache where the first kernel has just left it.
#pragma once

#include "cuda/frame_attention_memory.cuh"

namespace ardiff::cuda {

// Partial rows are numbered: the first part's begin at `first`, each further part's `next_part` later.
template <class T>
__device__ inline void merge_rows(const FrameAttentionParams& p, const AttentionMerge& merge, int kv_head,
                                  const float* partial_o, const float* partial_lse, std::int64_t first,
                                  std::int64_t next_part) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < merge.rows; row += kWarps) {
    const float* lse = partial_lse + first + row;
    float top = -infinity(), sum = 0.0f;
    for (int i = 0; i < merge.parts; ++i) top = max(top, lse[i * next_part]);
    const float shift = top == -infinity() ? 0.0f : top;
    for (int i = 0; i < merge.parts; ++i) sum += exp2_exact((lse[i * next_part] - shift) * kLog2E);
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    const QueryRow at(p, merge.token, merge.row + row, kv_head);
    const std::int64_t out = at.token * p.heads + at.head;
    for (std::int64_t column = lane; column < p.dim; column += 32) {
      float o = 0.0f;
      for (int i = 0; i < merge.parts; ++i) {
        const float weight = exp2_exact((lse[i * next_part] - shift) * kLog2E) * inverse;
        o = fma(weight, partial_o[(first + row + i * next_part) * p.dim + column], o);
      }
      reinterpret_cast<T*>(p.o)[out * p.dim + column] = stored<T>(o);
    }
    if (lane == 0) p.lse[out] = sum == 0.0f ? top : shift + log2_exact(sum) * kLn2;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    frame_attention_merge_kernel(const FrameAttentionParams p, const AttentionWork work) {
  const AttentionMerge merge = work.merges[blockIdx.x];
  const int kv_head = static_cast<int>(blockIdx.y);
  merge_rows<T>(p, merge, kv_head, work.partial_o, work.partial_lse,
                (merge.part * p.kv_heads + kv_head) * work.tile_rows, p.kv_heads * work.tile_rows);
}

}  // namespace ardiff::cuda
