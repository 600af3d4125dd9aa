// SPDX-License-Identifier: Apache-2.0
// How launchers start a kernel. Everything here is plain C++ for the host; NVRTC sees none of it.
#pragma once

#if !defined(__CUDACC_RTC__)
#include <cuda_runtime.h>

namespace ardiff::cuda {

// cudaSuccess, or why the launch was refused. Errors of the running kernel show up at a later call.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream,
                   Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, arguments...);
  // A refused launch leaves its error behind for the next caller of cudaGetLastError: take it away.
  if (status != cudaSuccess) (void)cudaGetLastError();
  return status;
}

}  // namespace ardiff::cuda
#endif
