// SPDX-License-Identifier: Apache-2.0
// How launchers start a kernel. Everything here is plain C++ for the host; NVRTC sees none of it.
#pragma once

#if !defined(__CUDACC_RTC__)
#include <cuda_runtime.h>

#include <cstddef>

namespace ardiff::cuda {

constexpr int kSharedWithoutAsking = 48 * 1024;  // bytes that any kernel may have per block

// cudaSuccess, or why the launch was refused. Errors of the running kernel show up at a later call.
// shared_bytes: of dynamic shared memory. More than any kernel may have is asked for first, at every launch:
// what a kernel may have is kept per device, and asking is a call of well under a microsecond.
template <class... Parameters, class... Arguments>
cudaError_t launch_with_shared(void (*kernel)(Parameters...), dim3 grid, dim3 block, int shared_bytes,
                               cudaStream_t stream, Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = stream;
  cudaError_t status = cudaSuccess;
  if (shared_bytes > kSharedWithoutAsking) {
    status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  }
  if (status == cudaSuccess) status = cudaLaunchKernelEx(&config, kernel, arguments...);
  // A refused launch leaves its error behind for the next caller of cudaGetLastError: take it away.
  if (status != cudaSuccess) (void)cudaGetLastError();
  return status;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream,
                   Arguments... arguments) {
  return launch_with_shared(kernel, grid, block, 0, stream, arguments...);
}

}  // namespace ardiff::cuda
#endif
