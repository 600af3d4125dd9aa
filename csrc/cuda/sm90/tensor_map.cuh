// SPDX-License-Identifier: Apache-2.0
// Tensor maps of page pools, for launchers: encoded by the driver where kernels are launched, left to Python
// (ardiff_engine/kernels/tensor_map.py) where launches are listed.
#pragma once

#include "cuda/launch.cuh"

#if ARDIFF_LAUNCHERS
#include "ardiff/frame_attention.h"
#include "ardiff/storage.h"
#include "cuda/tensor_map.h"

#if defined(ARDIFF_LAUNCH_LIST)
#include <cstring>

namespace ardiff::cuda {

// `listed` of launch_list.h takes it out again.
inline Status encode(TensorMap& map, const TiledTensor& tensor) {
  map = {};
  std::memcpy(&map, &tensor, sizeof tensor);
  return kSuccess;
}

}  // namespace ardiff::cuda

#else
#include <cuda.h>

namespace ardiff::cuda {

static_assert(TiledTensor::kFloat16 == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 &&
                  TiledTensor::kBFloat16 == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 &&
                  TiledTensor::kInterleaveNone == CU_TENSOR_MAP_INTERLEAVE_NONE &&
                  TiledTensor::kSwizzle128B == CU_TENSOR_MAP_SWIZZLE_128B &&
                  TiledTensor::kPromotion256B == CU_TENSOR_MAP_L2_PROMOTION_L2_256B &&
                  TiledTensor::kFillZeros == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
              "the numbers of cuda.h");
static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap),
              "one layout");

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

inline Status encode(TensorMap& map, const TiledTensor& tensor) {
  const auto encoder = tensor_map_encoder();
  if (encoder == nullptr) return cudaErrorCallRequiresNewerDriver;
  const CUresult result = encoder(
      reinterpret_cast<CUtensorMap*>(&map), static_cast<CUtensorMapDataType>(tensor.type), TiledTensor::kRank,
      const_cast<void*>(tensor.address), reinterpret_cast<const cuuint64_t*>(tensor.sizes),
      reinterpret_cast<const cuuint64_t*>(tensor.strides), tensor.box, tensor.every,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? kSuccess : kInvalidValue;
}

}  // namespace ardiff::cuda
#endif

namespace ardiff::cuda {

struct PageStrides {
  std::int64_t page, head, row;  // in elements of 2 bytes
};

template <class T>
constexpr std::uint32_t kTensorType = TiledTensor::kBFloat16;
template <>
constexpr std::uint32_t kTensorType<Float16> = TiledTensor::kFloat16;

// Pages [P, H, R, D] as (column, row, head, page), in boxes of 64 columns x box_rows.
template <class T>
TiledTensor page_boxes(const void* pages, const FrameAttentionParams& p, const PageStrides& strides,
                       int box_rows) {
  const auto size = [](std::int64_t items) { return static_cast<std::uint64_t>(items < 1 ? 1 : items); };
  // The stride of a dimension of one item means nothing, and may be 0, which the driver would refuse: what
  // the dimension before it takes up stands in.
  const auto step = [](std::int64_t items, std::int64_t stride, std::int64_t before) {
    return items > 1 ? stride : before;
  };
  const std::int64_t row = strides.row, head = step(p.kv_heads, strides.head, p.page_rows * row),
                     page = step(p.num_pages, strides.page, p.kv_heads * head);
  const auto bytes = [](std::int64_t elements) { return static_cast<std::uint64_t>(2 * elements); };
  return {pages,
          {size(p.dim), size(p.page_rows), size(p.kv_heads), size(p.num_pages)},
          {bytes(row), bytes(head), bytes(page)},
          {64, static_cast<std::uint32_t>(box_rows), 1, 1},
          {1, 1, 1, 1},
          kTensorType<T>};
}

}  // namespace ardiff::cuda
#endif
