// SPDX-License-Identifier: Apache-2.0
// How launchers start a kernel, or list it (compilers.h). Everything here is plain C++ for the host; NVRTC
// sees none of it.
#pragma once

#include "cuda/compilers.h"

#if ARDIFF_LAUNCHERS
#include "cuda/extent.h"

#if defined(ARDIFF_LAUNCH_LIST)

#include "cuda/launch_list.h"

#define __global__
#define __grid_constant__

namespace ardiff::cuda {

using Stream = LaunchList*;
using Status = ListStatus;
constexpr Status kSuccess = Status::success, kInvalidValue = Status::invalid_value;

template <auto kernel, class... Arguments>
Status launch_with_shared(Extent grid, Extent block, int shared_bytes, Stream stream,
                          const Arguments&... arguments) {
  static_assert(std::is_same_v<decltype(kernel), void (*)(Arguments...)>, "arguments are not converted");
  stream->push_back({ListedKernel<kernel>::name, grid, block, shared_bytes, {listed(arguments)...}});
  return kSuccess;
}

}  // namespace ardiff::cuda

#else

#include <cuda_runtime.h>

#include <cstddef>

namespace ardiff::cuda {

using Stream = cudaStream_t;
using Status = cudaError_t;
constexpr Status kSuccess = cudaSuccess, kInvalidValue = cudaErrorInvalidValue;
constexpr int kSharedWithoutAsking = 48 * 1024;  // bytes that any kernel may have per block

// kSuccess, or why the launch was refused. Errors of the running kernel show up at a later call.
// shared_bytes: of dynamic shared memory. More than any kernel may have is asked for first, at every launch:
// what a kernel may have is kept per device, and asking is a call of well under a microsecond.
template <class... Parameters, class... Arguments>
Status launch_with_shared(void (*kernel)(Parameters...), dim3 grid, dim3 block, int shared_bytes,
                          Stream stream, Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = stream;
  Status status = kSuccess;
  if (shared_bytes > kSharedWithoutAsking) {
    status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  }
  if (status == kSuccess) status = cudaLaunchKernelEx(&config, kernel, arguments...);
  // A refused launch leaves its error behind for the next caller of cudaGetLastError: take it away.
  if (status != kSuccess) (void)cudaGetLastError();
  return status;
}

template <auto kernel, class... Arguments>
Status launch_with_shared(Extent grid, Extent block, int shared_bytes, Stream stream,
                          const Arguments&... arguments) {
  return launch_with_shared(kernel, dim3(grid.x, grid.y, grid.z), dim3(block.x, block.y, block.z),
                            shared_bytes, stream, arguments...);
}

}  // namespace ardiff::cuda
#endif

namespace ardiff::cuda {

template <auto kernel, class... Arguments>
Status launch(Extent grid, Extent block, Stream stream, const Arguments&... arguments) {
  return launch_with_shared<kernel>(grid, block, 0, stream, arguments...);
}

}  // namespace ardiff::cuda
#endif
