// SPDX-License-Identifier: Apache-2.0
// Sines and cosines of one position, computed once per block into shared memory and used by all its heads.
#pragma once

#include "ardiff/rope.h"
#include "packed.cuh"

namespace ardiff::cuda {

constexpr int kMaxHeadDim = 512;

#if ARDIFF_KERNELS
struct Angles {
  float cosine[kMaxHeadDim / 2], sine[kMaxHeadDim / 2];
};

// All threads of the block call it; they must meet at a barrier before the angles are read.
// position: [axes]; frequencies: [axes, dim / 2].
__device__ inline void compute_angles(const std::int64_t* position, const double* frequencies, int axes,
                                      int dim, Angles& angles) {
  for (int j = static_cast<int>(threadIdx.x); j < dim / 2; j += static_cast<int>(blockDim.x)) {
    const double angle = rope_angle(position, frequencies, axes, dim / 2, j);
    sincospif(2.0f * rope_turns(angle), &angles.sine[j], &angles.cosine[j]);
  }
}

// Rotates the pairs of a pack whose first value is column `begin` (even) of a head.
template <int count>
__device__ inline void rotate_pack(float (&z)[count], int begin, int dim, const Angles& angles) {
#pragma unroll
  for (int i = 0; i < count; i += 2) {
    if (begin + i < dim) {
      const float cosine = angles.cosine[(begin + i) / 2], sine = angles.sine[(begin + i) / 2];
      const float even = z[i], odd = z[i + 1];
      z[i] = rotated(even, cosine, odd, -sine);
      z[i + 1] = rotated(odd, cosine, even, sine);
    }
  }
}
#endif

}  // namespace ardiff::cuda
