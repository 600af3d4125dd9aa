// SPDX-License-Identifier: Apache-2.0
// frame_attention for Hopper, its schedule and their bindings, for a CPU.
#define EMULATED_HOPPER 1
#include "bindings/attention_stream_k.cpp"
#include "bindings/frame_attention_sm90.cpp"
#include "cpu/common/attention_stream_k.cpp"
#include "cuda/sm90/frame_attention.cu"
#include "emulated_module.h"

PYBIND11_MODULE(attention_sm90_module, m) { emulation::define_module(m); }
