// SPDX-License-Identifier: Apache-2.0
// An emulated module: the submodule `cuda` of the native module, from bindings and kernels that the including
// file names, and `emulation`, the machine itself: what a test may choose and look at.
// Its name is that of its file: Python would share submodules between two modules of one name.
#pragma once

#include <pybind11/stl.h>

#include "bindings/cuda.h"
#include "start_by_name.h"

namespace emulation {

namespace py = pybind11;

inline void define_module(py::module_& m) {
  ardiff::bindings::Registration::run_all(m);
  py::module_ cuda = ardiff::bindings::cuda_module(m);
  cuda.def("describe", [](int status) {
    return py::make_tuple(cudaGetErrorName(static_cast<cudaError_t>(status)), Machine::get().error, false);
  });
  py::module_ machine = m.def_submodule("emulation");
  machine.def("reset", [] { Machine::get() = Machine(); });
  machine.def("set_order", [](int order) { Machine::get().order = static_cast<Order>(order); });
  machine.def("add_readable", [](std::uintptr_t begin, std::size_t bytes) {
    Machine::get().readable.emplace_back(reinterpret_cast<const unsigned char*>(begin), bytes);
  });
  machine.def("wgmma", [] { return Machine::get().wgmma; });
  machine.def("boxes", [] { return Machine::get().boxes; });
  machine.def("bank_conflicts", [] { return Machine::get().bank_conflicts; });
  machine.def("largest_shared", [] { return Machine::get().largest_shared; });
  machine.def("launches", [] { return Machine::get().launches; });
  machine.def("kernels", [] {
    std::vector<std::string> names;
    for (const auto& entry : named_kernels()) names.push_back(entry.first);
    return names;
  });
  machine.def("allow_shared", [](const std::string& name, int bytes) {
    return static_cast<int>(cudaFuncSetAttribute(named_kernels().at(name).function,
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  });
  // As cuLaunchKernel: parameters is the address of a list of addresses.
  machine.def(
      "start", [](const std::string& name, const std::array<unsigned, 3>& grid,
                  const std::array<unsigned, 3>& block, std::size_t shared, std::uintptr_t parameters) {
        cudaLaunchConfig_t config;
        config.gridDim = dim3(grid[0], grid[1], grid[2]);
        config.blockDim = dim3(block[0], block[1], block[2]);
        config.dynamicSmemBytes = shared;
        return static_cast<int>(named_kernels().at(name).start(config, reinterpret_cast<void**>(parameters)));
      });
}

}  // namespace emulation
