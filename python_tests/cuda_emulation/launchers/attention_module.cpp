// SPDX-License-Identifier: Apache-2.0
// frame_attention, its schedule and their bindings, for a CPU. Apart from module.cpp, which takes as long to
// compile.
#include "bindings/attention_work.cpp"
#include "bindings/frame_attention.cpp"
#include "cpu/common/attention_work.cpp"
#include "cuda/frame_attention.cu"
#include "emulated_module.h"

template <class T>
void name_tiles() {
  using namespace ardiff::cuda;
  emulation::name_kernels<frame_attention_kernel<T, 64, 64>, frame_attention_kernel<T, 64, 128>,
                          frame_attention_kernel<T, 80, 64>, frame_attention_kernel<T, 80, 128>,
                          frame_attention_kernel<T, 96, 64>, frame_attention_kernel<T, 96, 128>,
                          frame_attention_kernel<T, 128, 64>, frame_attention_kernel<T, 128, 128>>();
}

PYBIND11_MODULE(attention_module, m) {
  emulation::define_module(m);
  name_tiles<ardiff::BFloat16>();
  name_tiles<ardiff::Float16>();
  NAME_KERNELS(frame_attention_merge_kernel);
  emulation::name_kernels<ardiff::cuda::frame_attention_float_kernel>();
}
