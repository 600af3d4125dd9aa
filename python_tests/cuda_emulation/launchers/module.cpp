// SPDX-License-Identifier: Apache-2.0
// The submodule `cuda` of the native module, kernels and bindings unchanged, for a CPU: one file, so that it compiles in
// one go. frame_attention has an emulation of its own (../frame_attention.cpp).
#include "bindings/add_noise.cpp"
#include "bindings/gate_residual.cpp"
#include "bindings/modulate.cpp"
#include "bindings/norm_rope_write.cpp"
#include "bindings/pages.cpp"
#include "bindings/philox_normal.cpp"
#include "bindings/sample_timesteps.cpp"
#include "bindings/solver_step.cpp"
#include "cuda/add_noise.cu"
#include "cuda/gate_residual.cu"
#include "cuda/modulate.cu"
#include "cuda/norm_rope_write.cu"
#include "cuda/pages.cu"
#include "cuda/philox_normal.cu"
#include "cuda/sample_timesteps.cu"
#include "cuda/solver_step.cu"

namespace py = pybind11;

PYBIND11_MODULE(emulated_cuda, m) {
  ardiff::bindings::Registration::run_all(m);
  py::module_ cuda = ardiff::bindings::cuda_module(m);
  cuda.def("describe", [](int status) {
    return py::make_tuple(cudaGetErrorName(static_cast<cudaError_t>(status)),
                          emulation::Machine::get().error, false);
  });
}
