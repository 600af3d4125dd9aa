// SPDX-License-Identifier: Apache-2.0
// frame_attention, its schedule and their bindings, for a CPU. Apart from module.cpp, which takes as long to
// compile.
#include "bindings/attention_work.cpp"
#include "bindings/frame_attention.cpp"
#include "cpu/common/attention_work.cpp"
#include "cuda/frame_attention.cu"
#include "emulated_module.h"

PYBIND11_MODULE(attention_module, m) { emulation::define_module(m); }
