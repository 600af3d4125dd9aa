// SPDX-License-Identifier: Apache-2.0
// frame_attention and frame_attention_backward for ardiff_engine/ops/frame_attention.py, and the launchers of
// the CUDA kernel for frame_attention_cuda.py.
#include "ardiff/attention_work.h"
#include "attention_table.h"
#include "binding.h"
#include "cpu/dispatch.h"
#include "cuda.h"
#include "frame_attention_params.h"
#include "shared_kernels.h"

ARDIFF_DISPATCH(void, frame_attention_backward, const ardiff::FrameAttentionBackwardParams& p)

ARDIFF_TYPED_LAUNCHERS(frame_attention, const FrameAttentionParams&, const AttentionWork&)

namespace py = pybind11;
using ardiff::FrameAttentionParams;
using ardiff::bindings::Integers8;
using ardiff::bindings::params;
using ardiff::bindings::pointer;

namespace {

void check(const FrameAttentionParams& p, std::int64_t tokens) {
  if (!ardiff::bindings::table_fits(p, tokens)) {
    throw py::index_error("frame_attention: the table does not fit q or the page pool");
  }
}

void forward(const std::array<std::int64_t, 5>& tensors, const Integers8& table,
             const std::array<std::int64_t, 6>& sizes, const Integers8& strides, float scale) {
  const FrameAttentionParams p = params(tensors, table, sizes, strides, scale);
  check(p, sizes[0]);
  py::gil_scoped_release release;
  ardiff::cpu::frame_attention(p);
}

// gradients: dout, dlse (0: none), dq, dk, dv.
void backward(const std::array<std::int64_t, 5>& tensors, const std::array<std::int64_t, 5>& gradients,
              const Integers8& table, const std::array<std::int64_t, 6>& sizes, const Integers8& strides,
              float scale) {
  const auto floats = [&](int i) { return pointer<float>(static_cast<std::uintptr_t>(gradients[i])); };
  ardiff::FrameAttentionBackwardParams b{};
  b.forward = params(tensors, table, sizes, strides, scale);
  check(b.forward, sizes[0]);
  b.dout = floats(0);
  b.dlse = floats(1);
  b.dq = floats(2);
  b.dk = floats(3);
  b.dv = floats(4);
  py::gil_scoped_release release;
  ardiff::cpu::frame_attention_backward(b);
}

// Of the schedule: its buffer and its workspace (0: none), the sizes that attention_work returned.
ardiff::AttentionWork work_of(const FrameAttentionParams& p, std::uintptr_t plan, std::uintptr_t workspace,
                              const std::array<std::int32_t, 6>& s, std::uintptr_t error) {
  return ardiff::attention_work({s[0], s[1], s[2], s[3], s[4], s[5]}, pointer<const std::int32_t>(plan),
                                pointer<float>(workspace), pointer<std::int32_t>(error), p.kv_heads, p.dim);
}

#if defined(ARDIFF_WITH_CUDA)
// As `forward`, with a table on the device. Returns a CUDA status.
template <class T>
int launch(const std::array<std::int64_t, 5>& tensors, const Integers8& table,
           const std::array<std::int64_t, 6>& sizes, const Integers8& strides, float scale,
           std::uintptr_t plan, std::uintptr_t workspace, const std::array<std::int32_t, 6>& plan_sizes,
           std::uintptr_t error, int device, std::uintptr_t stream) {
  const FrameAttentionParams p = params(tensors, table, sizes, strides, scale);
  const ardiff::AttentionWork work = work_of(p, plan, workspace, plan_sizes, error);
  py::gil_scoped_release release;
  return ardiff::bindings::on_device(device, [&] {
    return ardiff::cuda::frame_attention<T>(p, work, reinterpret_cast<cudaStream_t>(stream));
  });
}
#endif

#if defined(ARDIFF_WITH_LAUNCH_LIST)
template <class T>
py::tuple launches(const std::array<std::int64_t, 5>& tensors, const Integers8& table,
                   const std::array<std::int64_t, 6>& sizes, const Integers8& strides, float scale,
                   std::uintptr_t plan, std::uintptr_t workspace,
                   const std::array<std::int32_t, 6>& plan_sizes, std::uintptr_t error) {
  const FrameAttentionParams p = params(tensors, table, sizes, strides, scale);
  ardiff::cuda::LaunchList list;
  const auto status =
      ardiff::cuda::frame_attention<T>(p, work_of(p, plan, workspace, plan_sizes, error), &list);
  return ardiff::bindings::python_launches(status, list);
}
#endif

}  // namespace

ARDIFF_BINDING(frame_attention) {
  m.def("frame_attention", &forward);
  m.def("frame_attention_backward", &backward);
#if defined(ARDIFF_WITH_CUDA)
  py::module_ cuda = ardiff::bindings::cuda_module(m);
  cuda.def("frame_attention_float32", &launch<float>);
  cuda.def("frame_attention_bfloat16", &launch<ardiff::BFloat16>);
  cuda.def("frame_attention_float16", &launch<ardiff::Float16>);
#endif
#if defined(ARDIFF_WITH_LAUNCH_LIST)
  py::module_ listed = ardiff::bindings::launches_module(m);
  listed.def("frame_attention_float32", &launches<float>);
  listed.def("frame_attention_bfloat16", &launches<ardiff::BFloat16>);
  listed.def("frame_attention_float16", &launches<ardiff::Float16>);
#endif
}
