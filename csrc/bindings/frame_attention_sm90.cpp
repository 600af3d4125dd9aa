// SPDX-License-Identifier: Apache-2.0
// The launchers of the Hopper kernel of frame_attention, for frame_attention_cuda.py.
#include "ardiff/attention_stream_k.h"
#include "cuda.h"
#include "frame_attention_params.h"

ARDIFF_TYPED_LAUNCHERS(frame_attention_sm90, const FrameAttentionParams&, const StreamKWork&)

namespace py = pybind11;
using ardiff::FrameAttentionParams;
using ardiff::bindings::Integers8;
using ardiff::bindings::params;
using ardiff::bindings::pointer;

namespace {

// Of the schedule: its buffer and its workspace (0: none), the sizes that attention_stream_k returned.
[[maybe_unused]] ardiff::StreamKWork stream_k_work_of(const FrameAttentionParams& p, std::uintptr_t plan,
                                                      std::uintptr_t workspace,
                                                      const std::array<std::int32_t, 6>& s,
                                                      std::int32_t block_rows, std::uintptr_t error) {
  return ardiff::stream_k_work({s[0], s[1], s[2], s[3], s[4], s[5]}, pointer<const std::int32_t>(plan),
                               pointer<float>(workspace), pointer<std::int32_t>(error), p.dim, block_rows);
}

#if defined(ARDIFF_WITH_CUDA)
// As cuda.frame_attention_bfloat16, with the schedule of attention_stream_k and its block_rows.
template <class T>
int launch_sm90(const std::array<std::int64_t, 5>& tensors, const Integers8& table,
                const std::array<std::int64_t, 6>& sizes, const Integers8& strides, float scale,
                std::uintptr_t plan, std::uintptr_t workspace, const std::array<std::int32_t, 6>& plan_sizes,
                std::int32_t block_rows, std::uintptr_t error, int device, std::uintptr_t stream) {
  const FrameAttentionParams p = params(tensors, table, sizes, strides, scale);
  const ardiff::StreamKWork work = stream_k_work_of(p, plan, workspace, plan_sizes, block_rows, error);
  py::gil_scoped_release release;
  return ardiff::bindings::on_device(device, [&] {
    return ardiff::cuda::frame_attention_sm90<T>(p, work, reinterpret_cast<cudaStream_t>(stream));
  });
}
#endif

#if defined(ARDIFF_WITH_LAUNCH_LIST)
template <class T>
py::tuple list_sm90(const std::array<std::int64_t, 5>& tensors, const Integers8& table,
                    const std::array<std::int64_t, 6>& sizes, const Integers8& strides, float scale,
                    std::uintptr_t plan, std::uintptr_t workspace,
                    const std::array<std::int32_t, 6>& plan_sizes, std::int32_t block_rows,
                    std::uintptr_t error) {
  const FrameAttentionParams p = params(tensors, table, sizes, strides, scale);
  const ardiff::StreamKWork work = stream_k_work_of(p, plan, workspace, plan_sizes, block_rows, error);
  ardiff::cuda::LaunchList list;
  const auto status = ardiff::cuda::frame_attention_sm90<T>(p, work, &list);
  return ardiff::bindings::python_launches(status, list);
}
#endif

}  // namespace

ARDIFF_BINDING(frame_attention_sm90) {
#if defined(ARDIFF_WITH_CUDA)
  py::module_ cuda = ardiff::bindings::cuda_module(m);
  cuda.def("frame_attention_sm90_bfloat16", &launch_sm90<ardiff::BFloat16>);
  cuda.def("frame_attention_sm90_float16", &launch_sm90<ardiff::Float16>);
#endif
#if defined(ARDIFF_WITH_LAUNCH_LIST)
  py::module_ listed = ardiff::bindings::launches_module(m);
  listed.def("frame_attention_sm90_bfloat16", &list_sm90<ardiff::BFloat16>);
  listed.def("frame_attention_sm90_float16", &list_sm90<ardiff::Float16>);
#endif
}
