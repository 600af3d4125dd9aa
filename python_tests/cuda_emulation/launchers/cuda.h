// SPDX-License-Identifier: Apache-2.0
// The part of the CUDA driver that the emulated module needs: tensor maps, with the driver's own conditions,
// and only those that the emulated copy engine (../cuda/sm90/ptx.cuh) implements.
#pragma once

#include "cuda_runtime.h"

using cuuint32_t = std::uint32_t;
using cuuint64_t = std::uint64_t;

enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_FLOAT16 = 6, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 };

struct alignas(128) CUtensorMap {
  cuuint64_t opaque[16];
};

namespace emulation {

struct EncodedMap {
  static constexpr std::uint64_t kEncoded = 0x70616D726F736E65;
  std::uint64_t encoded;
  const unsigned char* base;
  std::uint64_t sizes[4], strides[3];
  std::uint32_t box[4];
};
static_assert(sizeof(EncodedMap) <= sizeof(CUtensorMap), "fits into a tensor map");

}  // namespace emulation

inline CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                       void* address, const cuuint64_t* sizes, const cuuint64_t* strides,
                                       const cuuint32_t* box, const cuuint32_t* steps,
                                       CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                       CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  emulation::EncodedMap encoded{
      emulation::EncodedMap::kEncoded, static_cast<const unsigned char*>(address), {}, {}, {}};
  bool good = rank == 4 && reinterpret_cast<std::uintptr_t>(map) % 64 == 0 &&
              reinterpret_cast<std::uintptr_t>(address) % 16 == 0 && box[0] * 2 <= 128 &&
              box[0] * 2 % 16 == 0 &&
              (type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16) &&
              interleave == CU_TENSOR_MAP_INTERLEAVE_NONE && swizzle == CU_TENSOR_MAP_SWIZZLE_128B &&
              promotion == CU_TENSOR_MAP_L2_PROMOTION_L2_256B && fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
  for (int i = 0; good && i < 4; ++i) {
    good = sizes[i] >= 1 && sizes[i] <= cuuint64_t{1} << 32 && box[i] >= 1 && box[i] <= 256 && steps[i] == 1;
    encoded.sizes[i] = sizes[i];
    encoded.box[i] = box[i];
    if (i == 0) continue;
    good = good && strides[i - 1] >= 16 && strides[i - 1] % 16 == 0 && strides[i - 1] < cuuint64_t{1} << 40;
    encoded.strides[i - 1] = strides[i - 1];
  }
  if (!good) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(map, &encoded, sizeof encoded);
  return CUDA_SUCCESS;
}

enum { cudaEnableDefault = 0 };
enum cudaDriverEntryPointQueryResult {
  cudaDriverEntryPointSuccess = 0,
  cudaDriverEntryPointSymbolNotFound = 1
};

inline cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, int,
                                                    cudaDriverEntryPointQueryResult* found) {
  const bool known = std::string(symbol) == "cuTensorMapEncodeTiled";
  *function = known ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
  *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
