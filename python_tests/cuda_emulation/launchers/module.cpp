// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels but frame_attention, and their bindings, for a CPU: one file, so that it compiles in one
// go.
#include "bindings/add_noise.cpp"
#include "bindings/gate_residual.cpp"
#include "bindings/modulate.cpp"
#include "bindings/norm_rope_write.cpp"
#include "bindings/pages.cpp"
#include "bindings/philox_normal.cpp"
#include "bindings/pool_pages.cpp"
#include "bindings/sample_timesteps.cpp"
#include "bindings/solver_step.cpp"
#include "cuda/add_noise.cu"
#include "cuda/gate_residual.cu"
#include "cuda/modulate.cu"
#include "cuda/norm_rope_write.cu"
#include "cuda/pages.cu"
#include "cuda/philox_normal.cu"
#include "cuda/pool_pages.cu"
#include "cuda/sample_timesteps.cu"
#include "cuda/solver_step.cu"
#include "emulated_module.h"

PYBIND11_MODULE(module, m) {
  emulation::define_module(m);
  NAME_KERNELS(add_noise_kernel);
  NAME_KERNELS(gate_residual_kernel);
  NAME_KERNELS(modulate_kernel, COMMA 1);
  NAME_KERNELS(modulate_kernel, COMMA ardiff::cuda::kLongRowPacks);
  NAME_KERNELS(norm_rope_write_kernel, COMMA 1);
  NAME_KERNELS(norm_rope_write_kernel, COMMA ardiff::cuda::kLongHeadPacks);
  NAME_KERNELS(pool_pages_kernel);
  NAME_KERNELS(rotate_pages_kernel);
  NAME_KERNELS(solver_step_kernel);
  emulation::name_kernels<ardiff::cuda::copy_pages_kernel, ardiff::cuda::philox_normal_kernel,
                          ardiff::cuda::sample_timesteps_kernel>();
}
