// SPDX-License-Identifier: Apache-2.0
// How a CUDA launcher enters Python. A binding declares the launchers of its op at namespace scope,
//
//   ARDIFF_LAUNCHER(add_noise, ardiff::AddNoiseParamsOf)         // (const Params&, stream)
//   ARDIFF_CHECKED_LAUNCHER(modulate, ardiff::ModulateParamsOf)  // (const Params&, int32* error, stream)
//
// and in its ARDIFF_BINDING: `ARDIFF_DEF_CUDA(m, add_noise, params);`. Python then has the functions
// add_noise_float32, _bfloat16 and _float16 in two submodules:
//
//   cuda      where CUDA was there at build time: launches. The arguments of `params`, then the address of
//             the device's error bits where the launcher takes them (ardiff/device_error.h), then the
//             device's number and the stream. Returns a CUDA status, which ardiff_engine.ops.cuda_launch
//             turns into a typed error.
//   launches  always: lists what would be launched, for ardiff_engine.kernels.nvrtc. The same arguments but
//             device and stream. Returns (status, [(kernel, grid, block, shared bytes, [argument])]), an
//             argument as its bytes, or, for a tensor map, what is to be encoded.
//
// The emulated modules of the tests have `cuda` only.
#pragma once

#include "ardiff/storage.h"
#include "binding.h"

#if defined(ARDIFF_WITH_LAUNCH_LIST)
#include <pybind11/stl.h>

#include "cuda/launch_list.h"

namespace ardiff::bindings {

template <class Integer, std::size_t count>
py::tuple python_integers(const Integer (&values)[count]) {
  py::tuple all(count);
  for (std::size_t i = 0; i < count; ++i) all[i] = py::int_(values[i]);
  return all;
}

// Bytes, or for a tensor map what cuTensorMapEncodeTiled takes to write it, in its order.
inline py::object python_argument(const cuda::ListedArgument& argument) {
  if (const auto* bytes = std::get_if<std::string>(&argument)) return py::bytes(*bytes);
  const auto& t = std::get<cuda::TiledTensor>(argument);
  return py::make_tuple(t.type, t.kRank, reinterpret_cast<std::uintptr_t>(t.address),
                        python_integers(t.sizes), python_integers(t.strides), python_integers(t.box),
                        python_integers(t.every), t.kInterleaveNone, t.kSwizzle128B, t.kPromotion256B,
                        t.kFillZeros);
}

inline py::tuple python_launches(cuda::ListStatus status, const cuda::LaunchList& launches) {
  py::list list;
  for (const cuda::Launch& l : launches) {
    py::list arguments;
    for (const cuda::ListedArgument& a : l.arguments) arguments.append(python_argument(a));
    list.append(py::make_tuple(l.kernel, py::make_tuple(l.grid.x, l.grid.y, l.grid.z),
                               py::make_tuple(l.block.x, l.block.y, l.block.z), l.shared_bytes, arguments));
  }
  return py::make_tuple(static_cast<int>(status), list);
}

inline py::module_ launches_module(py::module_& m) {
  if (py::hasattr(m, "launches")) return m.attr("launches").cast<py::module_>();
  return m.def_submodule("launches", "What the launchers of csrc/cuda would launch.");
}

template <class Params, class... Arguments>
void def_launches(py::module_& m, const char* name, Params (*make)(Arguments...),
                  cuda::ListStatus (*launcher)(const Params&, cuda::LaunchList*)) {
  launches_module(m).def(name, [make, launcher](Arguments... arguments) {
    cuda::LaunchList list;
    const cuda::ListStatus status = launcher(make(arguments...), &list);
    return python_launches(status, list);
  });
}

template <class Params, class... Arguments>
void def_launches(py::module_& m, const char* name, Params (*make)(Arguments...),
                  cuda::ListStatus (*launcher)(const Params&, std::int32_t*, cuda::LaunchList*)) {
  launches_module(m).def(name, [make, launcher](Arguments... arguments, std::uintptr_t error) {
    cuda::LaunchList list;
    const cuda::ListStatus status = launcher(make(arguments...), pointer<std::int32_t>(error), &list);
    return python_launches(status, list);
  });
}

}  // namespace ardiff::bindings

#define ARDIFF_LIST_ONLY(...) __VA_ARGS__
#else
#define ARDIFF_LIST_ONLY(...)
#endif

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

#define ARDIFF_CUDA_ONLY(...) __VA_ARGS__
#else
#define ARDIFF_CUDA_ONLY(...)
#endif

// A launcher with these parameters, and a stream to start its kernels in or a list to name them in.
#define ARDIFF_ONE_LAUNCHER(op, ...)                           \
  namespace ardiff::cuda {                                     \
  ARDIFF_CUDA_ONLY(cudaError_t op(__VA_ARGS__, cudaStream_t);) \
  ARDIFF_LIST_ONLY(ListStatus op(__VA_ARGS__, LaunchList*);)   \
  }
// One per storage type.
#define ARDIFF_TYPED_LAUNCHERS(op, ...)                                           \
  namespace ardiff::cuda {                                                        \
  ARDIFF_CUDA_ONLY(template <class T> cudaError_t op(__VA_ARGS__, cudaStream_t);) \
  ARDIFF_LIST_ONLY(template <class T> ListStatus op(__VA_ARGS__, LaunchList*);)   \
  }
#define ARDIFF_LAUNCHER(op, Params) ARDIFF_TYPED_LAUNCHERS(op, const Params<T>&)
#define ARDIFF_CHECKED_LAUNCHER(op, Params) ARDIFF_TYPED_LAUNCHERS(op, const Params<T>&, std::int32_t*)

#define ARDIFF_DEF_ONE(m, name, params, launcher)                                              \
  ARDIFF_CUDA_ONLY(::ardiff::bindings::def_cuda(m, name, &params, &::ardiff::cuda::launcher);) \
  ARDIFF_LIST_ONLY(::ardiff::bindings::def_launches(m, name, &params, &::ardiff::cuda::launcher);)
#define ARDIFF_DEF_CUDA(m, op, params)                                                   \
  ARDIFF_DEF_ONE(m, #op "_float32", params<float>, op<float>)                            \
  ARDIFF_DEF_ONE(m, #op "_bfloat16", params<::ardiff::BFloat16>, op<::ardiff::BFloat16>) \
  ARDIFF_DEF_ONE(m, #op "_float16", params<::ardiff::Float16>, op<::ardiff::Float16>)
