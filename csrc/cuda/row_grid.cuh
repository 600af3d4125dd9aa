// SPDX-License-Identifier: Apache-2.0
// The grid of element-wise kernels over [rows, elements]: x runs over the packs of a row, y over rows, one
// pack of one row per thread. Short rows share a block.
#pragma once

#include "extent.h"
#include "packed.cuh"

namespace ardiff::cuda {

constexpr int kRowGridThreads = 256;
constexpr std::int64_t kMaxGridY = 65535;  // the hardware's limit; more rows are walked in a loop

#if ARDIFF_KERNELS
// body(row, begin, n): the n values from `begin` on
template <class T, class Body>
__device__ inline void for_packs(std::int64_t rows, std::int64_t elements, Body body) {
  const std::int64_t begin = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kPack<T>;
  if (begin >= elements) return;
  const int n = values_left(begin, elements, kPack<T>);
  const std::int64_t step = static_cast<std::int64_t>(gridDim.y) * blockDim.y;
  for (std::int64_t row = static_cast<std::int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < rows;
       row += step) {
    body(row, begin, n);
  }
}
#endif

#if ARDIFF_LAUNCHERS
struct RowGrid {
  Extent grid, block;
};

template <class T>
RowGrid row_grid(std::int64_t rows, std::int64_t elements) {
  const std::int64_t packs = (elements + kPack<T> - 1) / kPack<T>;
  int x = 32;
  while (x < packs && x < kRowGridThreads) x *= 2;
  const int y = kRowGridThreads / x;
  const std::int64_t row_blocks = (rows + y - 1) / y;
  return {{static_cast<unsigned>((packs + x - 1) / x),
           static_cast<unsigned>(row_blocks < kMaxGridY ? row_blocks : kMaxGridY)},
          {static_cast<unsigned>(x), static_cast<unsigned>(y)}};
}
#endif

}  // namespace ardiff::cuda
