// SPDX-License-Identifier: Apache-2.0
// What a launcher would start, for Python to start: ardiff_engine/kernels/nvrtc.py compiles the kernel by its
// name and passes the arguments as they are here. Plain C++: no CUDA header, no device code.
#pragma once

#include <cxxabi.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <variant>
#include <vector>

#include "cuda/extent.h"
#include "cuda/tensor_map.h"

namespace ardiff::cuda {

// The bytes of an argument, or the tensor whose map is to be encoded.
using ListedArgument = std::variant<std::string, TiledTensor>;

struct Launch {
  const std::string& kernel;  // as C++ and NVRTC name it: ardiff::cuda::add_noise_kernel<float>
  Extent grid, block;
  int shared_bytes;  // of dynamic shared memory
  std::vector<ListedArgument> arguments;
};
using LaunchList = std::vector<Launch>;

enum class ListStatus { success = 0, invalid_value = 1 };  // cudaSuccess, cudaErrorInvalidValue

// Every kernel that some launcher can start, with the sizes of its parameters.
inline std::map<std::string, std::vector<std::size_t>>& listed_kernels() {
  static std::map<std::string, std::vector<std::size_t>> kernels;
  return kernels;
}

template <auto kernel>
struct Named {};

// The name of a function, from that of a type which mentions it: "...Named<&NAME>", for an instance of a
// template "...Named<&(void NAME(PARAMETERS))>".
template <auto kernel>
std::string function_name() {
  char* text = abi::__cxa_demangle(typeid(Named<kernel>).name(), nullptr, nullptr, nullptr);
  std::string name = text ? text : "";
  std::free(text);
  name = name.substr(name.find('&') + 1);
  const std::size_t result = name.find("void ");
  if (result == std::string::npos) return name.substr(0, name.rfind('>'));
  name = name.substr(result + 5);
  return name.substr(0, name.find('('));
}

template <auto kernel>
struct ListedKernel;

template <class... Parameters, void (*kernel)(Parameters...)>
struct ListedKernel<kernel> {
  static const std::string& add() {
    return listed_kernels().emplace(function_name<kernel>(), std::vector{sizeof(Parameters)...}).first->first;
  }
  inline static const std::string& name = add();
};

template <class T>
ListedArgument listed(const T& value) {
  static_assert(std::is_trivially_copyable_v<T>, "parameters are copied to the device as they are");
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

// Put there by `encode` of sm90/tensor_map.cuh.
inline ListedArgument listed(const TensorMap& map) {
  TiledTensor tensor;
  std::memcpy(&tensor, &map, sizeof tensor);
  return tensor;
}

}  // namespace ardiff::cuda
