// SPDX-License-Identifier: Apache-2.0
// frame_attention for Hopper, its schedule and their bindings, for a CPU.
#define EMULATED_HOPPER 1
#include "bindings/attention_stream_k.cpp"
#include "bindings/frame_attention_sm90.cpp"
#include "cpu/common/attention_stream_k.cpp"
#include "cuda/sm90/frame_attention.cu"
#include "emulated_module.h"

template <class T>
void name_keys() {
  using namespace ardiff::cuda;
  emulation::name_kernels<frame_attention_sm90_kernel<T, 64, 112>, frame_attention_sm90_kernel<T, 64, 128>,
                          frame_attention_sm90_kernel<T, 80, 112>, frame_attention_sm90_kernel<T, 80, 128>,
                          frame_attention_sm90_kernel<T, 96, 112>, frame_attention_sm90_kernel<T, 96, 128>,
                          frame_attention_sm90_kernel<T, 128, 112>, frame_attention_sm90_kernel<T, 128, 128>,
                          frame_attention_sm90_merge_kernel<T>>();
}

PYBIND11_MODULE(attention_sm90_module, m) {
  emulation::define_module(m);
  name_keys<ardiff::BFloat16>();
  name_keys<ardiff::Float16>();
  m.attr("emulation").attr("tensor_map_encoder") = reinterpret_cast<std::uintptr_t>(&cuTensorMapEncodeTiled);
}
