// SPDX-License-Identifier: Apache-2.0
// The CUDA runtime of the emulated module (module.cpp), on the machine of ../machine.h: launches with blocks
// of two dimensions, grids of three, static and dynamic shared memory, and the built-in functions that the
// element-wise and norm kernels use. Found before the real header when this folder is the first include
// folder.
#pragma once

#include <algorithm>
#include <map>

#include "../machine.h"

// Blocks run one after the other, so one instance per kernel is enough. It is not cleared in between.
#define __shared__ static

inline dim3 blockDim, gridDim;

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline void __syncthreads() {
  auto& machine = emulation::Machine::get();
  machine.meet(machine.block, 0, static_cast<int>(machine.threads.size()), [] {});
}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  return emulation::Machine::get().warp_instruction<float, float>(
      1, value, [mask](const float* in, float* out) {
        for (int i = 0; i < emulation::kLanes; ++i) out[i] = in[i ^ mask];
      });
}

inline int atomicOr(std::int32_t* to, int bits) {
  const int before = *to;
  *to |= bits;
  return before;
}

inline void sincospif(float x, float* sine, float* cosine) {
  *sine = static_cast<float>(std::sin(M_PI * static_cast<double>(x)));
  *cosine = static_cast<float>(std::cos(M_PI * static_cast<double>(x)));
}

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorCallRequiresNewerDriver = 36,
  cudaErrorLaunchFailure = 719
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace emulation {

// Dynamic shared memory that each kernel may have; 48 KB for one that did not ask.
inline std::map<const void*, int>& allowed_shared() {
  static std::map<const void*, int> bytes;
  return bytes;
}

}  // namespace emulation

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value > emulation::kMostShared) return cudaErrorInvalidValue;
  emulation::allowed_shared()[kernel] = value;
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  auto& machine = emulation::Machine::get();
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  const int threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  machine.launches.push_back({gridDim.x, gridDim.y, gridDim.z, blockDim.x, blockDim.y, blockDim.z,
                              static_cast<unsigned>(config->dynamicSmemBytes)});
  const auto allowed = emulation::allowed_shared().find(reinterpret_cast<const void*>(kernel));
  const int most = allowed == emulation::allowed_shared().end() ? 48 * 1024 : allowed->second;
  if (threads % emulation::kLanes || threads > 1024 || gridDim.y > 65535 || gridDim.z > 65535 ||
      static_cast<int>(config->dynamicSmemBytes) > most) {
    return cudaErrorInvalidValue;
  }
  machine.reset();
  machine.shared_bytes = config->dynamicSmemBytes;
  machine.largest_shared = std::max(machine.largest_shared, machine.shared_bytes);
  machine.kernel = [&] {
    // The machine numbers threads in one dimension, anew after every wait: only one-dimensional blocks may
    // wait.
    if (blockDim.y > 1) threadIdx = dim3(threadIdx.x % blockDim.x, threadIdx.x / blockDim.x);
    kernel(arguments...);
  };
  for (unsigned z = 0; z < gridDim.z; ++z) {
    for (unsigned y = 0; y < gridDim.y; ++y) {
      for (unsigned x = 0; x < gridDim.x && machine.error.empty(); ++x) {
        blockIdx = dim3(x, y, z);
        machine.run_block(threads);
      }
    }
  }
  return machine.error.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline const char* cudaGetErrorName(cudaError_t status) {
  return status == cudaErrorInvalidValue ? "cudaErrorInvalidValue" : "cudaErrorLaunchFailure";
}
