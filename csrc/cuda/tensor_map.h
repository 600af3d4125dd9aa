// SPDX-License-Identifier: Apache-2.0
// What the copy engine of Hopper needs to know of a tensor, and what the driver is asked for to encode it.
// Plain C++, for all compilers (cuda/compilers.h).
#pragma once

#include "ardiff/integers.h"

namespace ardiff::cuda {

// What cuTensorMapEncodeTiled writes. A kernel takes it by value, as a __grid_constant__. The driver asks for
// multiples of 64 bytes; 128 is what cuda.h declares since CUDA 13.
struct alignas(128) TensorMap {
  std::uint64_t words[16];
};

// What cuTensorMapEncodeTiled is called with: a tensor of four dimensions of 16-bit values, the innermost
// first, and the box of it that one copy brings. The numbers are those of cuda.h, which the host compiler
// need not have: under nvcc, sm90/tensor_map.cuh compares them.
struct TiledTensor {
  static constexpr std::uint32_t kRank = 4, kFloat16 = 6, kBFloat16 = 9;
  static constexpr std::uint32_t kInterleaveNone = 0, kSwizzle128B = 3, kPromotion256B = 3, kFillZeros = 0;

  const void* address;
  std::uint64_t sizes[kRank], strides[kRank - 1];  // strides in bytes, of all dimensions but the innermost
  std::uint32_t box[kRank], every[kRank];          // every: steps between the values of a box, 1
  std::uint32_t type;
};
static_assert(sizeof(TiledTensor) <= sizeof(TensorMap), "a list of launches keeps the one in the other");

}  // namespace ardiff::cuda
