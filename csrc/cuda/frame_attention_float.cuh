// SPDX-License-Identifier: Apache-2.0
// Frame attention for float tensors, without tensor cores: correct for any D up to 256, strides and
// alignment, meant for checking and for small models, not for speed.
//
// A warp takes a query row and walks the key blocks that the row sees, 16 keys at a time: a lane takes a key
// for the logits (lanes 16..31 the other half of the columns), and columns lane, lane + 32, ... for the
// values. Rows never touch a page that they do not see.
#pragma once

#include "cuda/frame_attention_memory.cuh"

namespace ardiff::cuda {

__global__ void __launch_bounds__(kThreads)
    frame_attention_float_kernel(const FrameAttentionParams p, const AttentionWork work) {
  const AttentionTile tile = work.tiles[blockIdx.x];
  const int kv_head = static_cast<int>(blockIdx.y), lane = static_cast<int>(threadIdx.x) % 32;
  const int dim = static_cast<int>(p.dim), key = lane % kKeyBlock;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < tile.rows; row += kWarps) {
    const QueryRow at(p, tile.token, tile.row + row, kv_head);
    const float* q = p.q + at.token * p.q_token + at.head * p.q_head;
    const std::int32_t limit = row_limit(p, work.limits, tile, row);
    float o[kFloatColumns] = {}, top = -infinity(), sum = 0.0f;
    for (int block = tile.first; block < tile.last && block < limit; ++block) {
      const Keys keys = resolve(p, work, tile, kv_head, block);
      float logit = 0.0f;
      if (key < keys.rows) {
        const float* k = p.k + keys.k + key * p.k_row;
        for (int j = lane / kKeyBlock; j < dim; j += 2) logit = fma(q[j], k[j], logit);
      }
      logit += shuffle_xor(logit, kKeyBlock);
      logit = key < keys.rows ? fma(logit, p.scale * kLog2E, keys.bias) : -infinity();
      float most = max(top, logit);
      for (int distance = 1; distance < kKeyBlock; distance *= 2)
        most = max(most, shuffle_xor(most, distance));
      const float shift = most == -infinity() ? 0.0f : most;
      const float alpha = exp2_exact(top - shift), weight = exp2_exact(logit - shift);
      top = most;
      sum *= alpha;
      for (int i = 0; i < kFloatColumns; ++i) o[i] *= alpha;
      for (int n = 0; n < keys.rows; ++n) {
        const float w = shuffle(weight, n);
        const float* v = p.v + keys.v + n * p.v_row;
        sum += w;
#pragma unroll
        for (int i = 0; i < kFloatColumns; ++i) {
          if (lane + 32 * i < dim) o[i] = fma(w, v[lane + 32 * i], o[i]);
        }
      }
    }
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    const float lse = sum == 0.0f ? -infinity() : (top + log2_exact(sum)) * kLn2;
    const bool whole = tile.part < 0;
    const std::int64_t out =
        whole ? at.token * p.heads + at.head : (tile.part * p.kv_heads + kv_head) * work.tile_rows + row;
    float* to = (whole ? p.o : work.partial_o) + out * dim;
    for (int i = 0; i < kFloatColumns; ++i) {
      if (lane + 32 * i < dim) to[lane + 32 * i] = o[i] * inverse;
    }
    if (lane == 0) (whole ? p.lse : work.partial_lse)[out] = lse;
  }
}

}  // namespace ardiff::cuda
