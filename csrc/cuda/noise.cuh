// SPDX-License-Identifier: Apache-2.0
// Box-Muller on the words of philox_normal.h, one block of four elements per call.
#pragma once

#include "ardiff/philox_normal.h"
#include "ardiff/scalar.h"

namespace ardiff::cuda {

__device__ inline void box_muller(std::uint32_t a, std::uint32_t b, float* even, float* odd) {
  const float u1 = fma(static_cast<float>(a), kUniformScale, kUniformOffset);
  const float u2 = fma(static_cast<float>(b), kUniformScale, kUniformOffset);
  const float radius = sqrtf(-2.0f * logf(u1));
  float sine, cosine;
  sincospif(2.0f * u2, &sine, &cosine);  // the reduction by half turns is exact
  *even = radius * cosine;
  *odd = radius * sine;
}

// Elements element .. element + count of a row; both are multiples of 4.
template <int count>
__device__ inline void normals(const NoiseKey& key, std::int64_t element, float (&z)[count]) {
#pragma unroll
  for (int i = 0; i < count; i += 4) {
    std::uint32_t words[4];
    philox(key, static_cast<std::uint32_t>((element + i) / 4), words);
    box_muller(words[0], words[1], &z[i], &z[i + 1]);
    box_muller(words[2], words[3], &z[i + 2], &z[i + 3]);
  }
}

}  // namespace ardiff::cuda
