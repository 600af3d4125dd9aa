// SPDX-License-Identifier: Apache-2.0
// frame_attention and frame_attention_backward for ardiff_engine/ops/frame_attention.py, and the launchers of
// the CUDA kernel for frame_attention_cuda.py.
#include "ardiff/frame_attention.h"

#include <pybind11/stl.h>

#include <array>

#include "ardiff/attention_work.h"
#include "attention_table.h"
#include "binding.h"
#include "cpu/dispatch.h"
#include "cuda.h"

ARDIFF_DISPATCH(void, frame_attention, const ardiff::FrameAttentionParams& p)
ARDIFF_DISPATCH(void, frame_attention_backward, const ardiff::FrameAttentionBackwardParams& p)

ARDIFF_TYPED_LAUNCHERS(frame_attention, const FrameAttentionParams&, const AttentionWork&)

namespace py = pybind11;
using ardiff::FrameAttentionParams;
using ardiff::bindings::pointer;

namespace {

using Integers8 = std::array<std::int64_t, 8>;

void check(const FrameAttentionParams& p, std::int64_t tokens) {
  if (!ardiff::bindings::table_fits(p, tokens)) {
    throw py::index_error("frame_attention: the table does not fit q or the page pool");
  }
}

// tensors: q, k, v, o, lse. table: frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias (0: none), number
// of groups. sizes: T, P, H, Hkv, D, R. strides: q token, head; k page, head, row; v page, head, row.
FrameAttentionParams params(const std::array<std::int64_t, 5>& tensors, const Integers8& table,
                            const std::array<std::int64_t, 6>& sizes, const Integers8& strides, float scale) {
  const auto integers = [&](int i) {
    return pointer<const std::int32_t>(static_cast<std::uintptr_t>(table[i]));
  };
  const auto floats = [&](int i) { return pointer<float>(static_cast<std::uintptr_t>(tensors[i])); };
  FrameAttentionParams p{};
  p.q = floats(0);
  p.k = floats(1);
  p.v = floats(2);
  p.o = floats(3);
  p.lse = floats(4);
  p.frame_ptr = integers(0);
  p.group_ptr = integers(1);
  p.page_ptr = integers(2);
  p.pages = integers(3);
  p.valid = integers(4);
  p.seen = integers(5);
  p.bias = pointer<const float>(static_cast<std::uintptr_t>(table[6]));
  p.groups = table[7];
  p.num_pages = sizes[1];
  p.heads = sizes[2];
  p.kv_heads = sizes[3];
  p.dim = sizes[4];
  p.page_rows = sizes[5];
  p.q_token = strides[0];
  p.q_head = strides[1];
  p.k_page = strides[2];
  p.k_head = strides[3];
  p.k_row = strides[4];
  p.v_page = strides[5];
  p.v_head = strides[6];
  p.v_row = strides[7];
  p.scale = scale;
  return p;
}

void forward(const std::array<std::int64_t, 5>& tensors, const Integers8& table,
             const std::array<std::int64_t, 6>& sizes, const Integers8& strides, float scale) {
  const FrameAttentionParams p = params(tensors, table, sizes, strides, scale);
  check(p, sizes[0]);
  py::gil_scoped_release release;
  ardiff::cpu::frame_attention(p);
}

// gradients: dout, dlse (0: none), delta (workspace), dq, dk, dv.
void backward(const std::array<std::int64_t, 5>& tensors, const std::array<std::int64_t, 6>& gradients,
              const Integers8& table, const std::array<std::int64_t, 6>& sizes, const Integers8& strides,
              float scale) {
  const auto floats = [&](int i) { return pointer<float>(static_cast<std::uintptr_t>(gradients[i])); };
  ardiff::FrameAttentionBackwardParams b{};
  b.forward = params(tensors, table, sizes, strides, scale);
  check(b.forward, sizes[0]);
  b.dout = floats(0);
  b.dlse = floats(1);
  b.delta = floats(2);
  b.dq = floats(3);
  b.dk = floats(4);
  b.dv = floats(5);
  b.tokens = sizes[0];
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
