// SPDX-License-Identifier: Apache-2.0
// The 64 query rows of a consumer warpgroup of the Hopper frame attention kernel: the load of q, what a lane
// keeps of them, and the store of the result.
#pragma once

#include "cuda/sm90/frame_attention_memory.cuh"

namespace ardiff::cuda {

// Of two rows, 16 w + g and 16 w + g + 8 of lane 4 g + t in warp w; columns 8 n + 2 t and + 1 of O.
template <int kDim>
struct Rows64 {
  // Columns of the first slab, and of the second if there is one: all 64, of which a head dimension below 128
  // leaves some zero.
  static constexpr int kSecond = kDim > kSlabColumns ? kSlabColumns / 2 : 1;
  float o[kSlabColumns / 2], o2[kSecond];
  float top[2];  // running maximum of a row, in units of log 2
  float sum[2];  // this lane's part of the denominator

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kSlabColumns / 2; ++i) o[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < kSecond; ++i) o2[i] = 0.0f;
    top[0] = top[1] = -infinity();
    sum[0] = sum[1] = 0.0f;
  }
  __device__ __forceinline__ void rescale(const float (&alpha)[2]) {
#pragma unroll
    for (int i = 0; i < kSlabColumns / 2; ++i) o[i] *= alpha[i / 2 % 2];
#pragma unroll
    for (int i = 0; i < kSecond; ++i) o2[i] *= alpha[i / 2 % 2];
  }
  __device__ __forceinline__ void pin_sums() {
    pin(o);
    pin(o2);
  }
  // Columns 8 n + 2 t and + 1.
  __device__ __forceinline__ float2 pair(int n, int half) const {
    const float* at = n < 8 ? o + 4 * n : o2 + 4 * (n - 8);
    return float2{at[2 * half], at[2 * half + 1]};
  }
};

// The group's rows of q, and how many boxes each of them sees.
template <int kDim, int kKeys>
__device__ void load_queries(const StreamMemory<kDim, kKeys>& shared, const FrameAttentionParams& p,
                             const StreamKWork& work, const StreamKItem& item, int first_row, int thread) {
  constexpr int kChunks = kDim / 8;
  const AttentionTile tile = item.tile;
  if (thread < kGroupRows) {
    const int row = first_row + thread;
    shared.limits[row] = row < tile.rows ? row_limit(p, work.limits, tile, row) : 0;
  }
  const auto* q = reinterpret_cast<const std::uint16_t*>(p.q);
  for (int index = thread; index < kGroupRows * kChunks; index += kGroupThreads) {
    const int row = first_row + index / kChunks, chunk = index % kChunks;
    uint4 x{0, 0, 0, 0};
    if (row < tile.rows && chunk * 8 < p.dim) {
      const QueryRow at(p, tile.token, tile.row + row, item.kv_head);
      x = *reinterpret_cast<const uint4*>(q + at.token * p.q_token + at.head * p.q_head + chunk * 8);
    }
    store_shared(shared.q + chunk_offset(StreamMemory<kDim, kKeys>::kQuerySlabBytes, row, chunk), x);
  }
  fence_async();
}

// Stores a warp's 16 rows: to o and lse, or, for one part of several, to the workspace.
template <class T, int kDim, int kKeys>
__device__ void write_rows(const StreamMemory<kDim, kKeys>& shared, const FrameAttentionParams& p,
                           const StreamKWork& work, const StreamKItem& item, int first_row, int lane,
                           const Rows64<kDim>& rows) {
  constexpr int kSlabBytes = StreamMemory<kDim, kKeys>::kQuerySlabBytes;
  const AttentionTile tile = item.tile;
  const int dim = static_cast<int>(p.dim);
  const std::int64_t partial = std::int64_t{tile.part} * kStreamRows;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = rows.sum[half];
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    const float lse = sum == 0.0f ? -infinity() : (rows.top[half] + log2_exact(sum)) * kLn2;
    const int row = first_row + half * 8 + lane / 4;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const float2 o = rows.pair(n, half);
      const int column = n * 8 + lane % 4 * 2;
      if (tile.part < 0) {
        *reinterpret_cast<std::uint32_t*>(shared.q_bytes + chunk_offset(kSlabBytes, row, n) + lane % 4 * 4) =
            pack<T>(o.x * inverse, o.y * inverse);
      } else if (row < tile.rows && column < dim) {
        *reinterpret_cast<float2*>(work.partial_o + (partial + row) * dim + column) =
            float2{o.x * inverse, o.y * inverse};
      }
    }
    if (lane % 4 == 0 && row < tile.rows) {
      if (tile.part < 0) {
        const QueryRow at(p, tile.token, tile.row + row, item.kv_head);
        p.lse[at.token * p.heads + at.head] = lse;
      } else {
        work.partial_lse[partial + row] = lse;
      }
    }
  }
  if (tile.part >= 0) return;
  // Through the rows of q, which are no longer needed, so that a row of o leaves in 16-byte pieces.
  warp_barrier();
  auto* o = reinterpret_cast<std::uint16_t*>(p.o);
  for (int index = lane; index < 16 * (kDim / 8); index += 32) {
    const int row = first_row + index / (kDim / 8), chunk = index % (kDim / 8);
    if (row >= tile.rows || chunk * 8 >= dim) continue;
    const QueryRow at(p, tile.token, tile.row + row, item.kv_head);
    *reinterpret_cast<uint4*>(o + (at.token * p.heads + at.head) * dim + chunk * 8) =
        *reinterpret_cast<const uint4*>(shared.q_bytes + chunk_offset(kSlabBytes, row, chunk));
  }
}

}  // namespace ardiff::cuda
