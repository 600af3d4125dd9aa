// SPDX-License-Identifier: Apache-2.0
// Tensor maps of page pools: what the copy engine of Hopper needs to know of a tensor, encoded by the driver.
#pragma once

#include "cuda/sm90/ptx.cuh"

#if !defined(__CUDACC_RTC__)
#include <cuda.h>
#include <cuda_runtime.h>

namespace ardiff::cuda {

// The driver's encoder, found through the runtime, so that nothing links against libcuda; null with a driver
// that has none.
inline auto tensor_map_encoder() -> decltype(&cuTensorMapEncodeTiled) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  if (status != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

struct PageStrides {
  std::int64_t page, head, row;  // in elements of 2 bytes
};

// Pages [P, H, R, D] as (column, row, head, page), in boxes of 64 columns x box_rows, with the 128-byte
// swizzle.
inline cudaError_t encode_pages(TensorMap& map, CUtensorMapDataType type, const void* pages,
                                const FrameAttentionParams& p, const PageStrides& strides, int box_rows) {
  const auto encode = tensor_map_encoder();
  if (encode == nullptr) return cudaErrorCallRequiresNewerDriver;
  const auto size = [](std::int64_t items) { return static_cast<cuuint64_t>(items < 1 ? 1 : items); };
  // The stride of a dimension of one item means nothing, and may be 0, which the driver would refuse.
  const auto step = [](std::int64_t items, std::int64_t stride) {
    return static_cast<cuuint64_t>(items > 1 ? 2 * stride : 16);
  };
  const cuuint64_t sizes[4] = {size(p.dim), size(p.page_rows), size(p.kv_heads), size(p.num_pages)};
  const cuuint64_t steps[3] = {step(p.page_rows, strides.row), step(p.kv_heads, strides.head),
                               step(p.num_pages, strides.page)};
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(box_rows), 1, 1}, every[4] = {1, 1, 1, 1};
  const CUresult result =
      encode(reinterpret_cast<CUtensorMap*>(&map), type, 4, const_cast<void*>(pages), sizes, steps, box,
             every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace ardiff::cuda
#endif
