// SPDX-License-Identifier: Apache-2.0
// How a CUDA launcher enters the submodule `cuda`. A binding declares the launchers of its op at namespace
// scope,
//
//   ARDIFF_LAUNCHER(add_noise, ardiff::AddNoiseParamsOf)         // cudaError_t add_noise(const Params&,
//   stream) ARDIFF_CHECKED_LAUNCHER(modulate, ardiff::ModulateParamsOf)  // (const Params&, int32* error,
//   stream)
//
// and in its ARDIFF_BINDING: `ARDIFF_DEF_CUDA(m, add_noise, params);`. Python then has
// cuda.add_noise_float32, _bfloat16 and _float16, with the arguments of `params`, then the address of the
// device's error bits where the launcher takes them (ardiff/device_error.h), then the device's number and the
// stream. They return a CUDA status, which ardiff_engine.ops.cuda_launch turns into a typed error. In a build
// without CUDA all of this is empty.
#pragma once

#include "ardiff/storage.h"
#include "binding.h"

#if defined(ARDIFF_WITH_CUDA)
#include <cuda_runtime_api.h>

namespace ardiff::bindings {

inline py::module_ cuda_module(py::module_& m) {
  if (py::hasattr(m, "cuda")) return m.attr("cuda").cast<py::module_>();
  return m.def_submodule("cuda", "Launchers of the CUDA kernels; each returns a CUDA status.");
}

// The stream belongs to a device, which must be the current one while a kernel is launched into it.
template <class Launch>
int on_device(int device, Launch launch) {
  int before = 0;
  cudaError_t status = cudaGetDevice(&before);
  if (status != cudaSuccess) return status;
  if (before == device) return launch();
  status = cudaSetDevice(device);
  if (status != cudaSuccess) return status;
  const cudaError_t launched = launch();
  status = cudaSetDevice(before);
  return launched != cudaSuccess ? launched : status;
}

template <class Params, class... Arguments>
void def_cuda(py::module_& m, const char* name, Params (*make)(Arguments...),
              cudaError_t (*launch)(const Params&, cudaStream_t)) {
  cuda_module(m).def(
      name,
      [make, launch](Arguments... arguments, int device, std::uintptr_t stream) {
        const Params p = make(arguments...);
        return on_device(device, [&] { return launch(p, reinterpret_cast<cudaStream_t>(stream)); });
      },
      py::call_guard<py::gil_scoped_release>());
}

template <class Params, class... Arguments>
void def_cuda(py::module_& m, const char* name, Params (*make)(Arguments...),
              cudaError_t (*launch)(const Params&, std::int32_t*, cudaStream_t)) {
  cuda_module(m).def(
      name,
      [make, launch](Arguments... arguments, std::uintptr_t error, int device, std::uintptr_t stream) {
        const Params p = make(arguments...);
        return on_device(device, [&] {
          return launch(p, pointer<std::int32_t>(error), reinterpret_cast<cudaStream_t>(stream));
        });
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace ardiff::bindings

#define ARDIFF_LAUNCHER(op, Params)                        \
  namespace ardiff::cuda {                                 \
  template <class T>                                       \
  cudaError_t op(const Params<T>& p, cudaStream_t stream); \
  }
#define ARDIFF_CHECKED_LAUNCHER(op, Params)                                     \
  namespace ardiff::cuda {                                                      \
  template <class T>                                                            \
  cudaError_t op(const Params<T>& p, std::int32_t* error, cudaStream_t stream); \
  }
#define ARDIFF_DEF_CUDA(m, op, params)                                                         \
  ::ardiff::bindings::def_cuda(m, #op "_float32", &params<float>, &::ardiff::cuda::op<float>); \
  ::ardiff::bindings::def_cuda(m, #op "_bfloat16", &params<::ardiff::BFloat16>,                \
                               &::ardiff::cuda::op<::ardiff::BFloat16>);                       \
  ::ardiff::bindings::def_cuda(m, #op "_float16", &params<::ardiff::Float16>,                  \
                               &::ardiff::cuda::op<::ardiff::Float16>)
#else
#define ARDIFF_LAUNCHER(op, Params)
#define ARDIFF_CHECKED_LAUNCHER(op, Params)
#define ARDIFF_DEF_CUDA(m, op, params)
#endif
