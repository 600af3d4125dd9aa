// SPDX-License-Identifier: Apache-2.0
// Starts an emulated kernel as the CUDA driver does: by its name, with a list of addresses of its parameters.
#pragma once

#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "cuda/launch_list.h"

namespace emulation {

using Start = cudaError_t (*)(const cudaLaunchConfig_t&, void**);

struct NamedKernel {
  Start start;
  const void* function;
};

inline std::map<std::string, NamedKernel>& named_kernels() {
  static std::map<std::string, NamedKernel> kernels;
  return kernels;
}

// The driver copies parameters, wherever they lie.
template <class Parameter>
Parameter copied(const void* from) {
  Parameter value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <auto kernel>
struct Starter;

template <class... Parameters, void (*kernel)(Parameters...)>
struct Starter<kernel> {
  template <std::size_t... i>
  static cudaError_t with(const cudaLaunchConfig_t& config, void** given, std::index_sequence<i...>) {
    return cudaLaunchKernelEx(&config, kernel, copied<Parameters>(given[i])...);
  }
  static cudaError_t start(const cudaLaunchConfig_t& config, void** given) {
    return with(config, given, std::index_sequence_for<Parameters...>{});
  }
};

template <auto... kernels>
void name_kernels() {
  (named_kernels().emplace(ardiff::cuda::function_name<kernels>(),
                           NamedKernel{&Starter<kernels>::start, reinterpret_cast<const void*>(kernels)}),
   ...);
}

}  // namespace emulation

// Of a kernel for every storage type, with further template arguments.
#define NAME_KERNELS(kernel, ...)                                             \
  emulation::name_kernels<ardiff::cuda::kernel<float __VA_ARGS__>,            \
                          ardiff::cuda::kernel<ardiff::BFloat16 __VA_ARGS__>, \
                          ardiff::cuda::kernel<ardiff::Float16 __VA_ARGS__>>()
#define COMMA ,
