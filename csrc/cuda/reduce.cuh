// SPDX-License-Identifier: Apache-2.0
// Sums over lanes and over a block, by fixed trees: the same inputs give the same bits, whatever else runs.
#pragma once

#include "compilers.h"

namespace ardiff::cuda {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 32;

#if ARDIFF_KERNELS
// Over groups of `lanes` neighbours, a power of two. All 32 lanes of the warp must call it.
__device__ inline float group_sum(float value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, offset);
  return value;
}

// Over the block, which is whole warps in x. `partial` is shared memory of kMaxWarps floats that no other
// call uses: nothing waits before it is overwritten.
__device__ inline float block_sum(float value, float* partial) {
  value = group_sum(value, kWarp);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) sum += partial[warp];
  return sum;
}
#endif

}  // namespace ardiff::cuda
