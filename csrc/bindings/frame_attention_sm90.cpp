// SPDX-License-Identifier: Apache-2.0
// The launchers of the Hopper kernel of frame_attention, for frame_attention_cuda.py.
#include "ardiff/attention_stream_k.h"
#include "cuda.h"
#include "frame_attention_params.h"

#if defined(ARDIFF_WITH_CUDA)
namespace ardiff::cuda {
template <class T>
cudaError_t frame_attention_sm90(const FrameAttentionParams& p, const StreamKWork& work, cudaStream_t stream);
}

namespace py = pybind11;
using ardiff::bindings::Integers8;
using ardiff::bindings::pointer;

namespace {

// As cuda.frame_attention_bfloat16, with the schedule of attention_stream_k and its block_rows.
template <class T>
int launch(const std::array<std::int64_t, 5>& tensors, const Integers8& table,
           const std::array<std::int64_t, 6>& sizes, const Integers8& strides, float scale,
           std::uintptr_t plan, std::uintptr_t workspace, const std::array<std::int32_t, 6>& s,
           std::int32_t block_rows, std::uintptr_t error, int device, std::uintptr_t stream) {
  const ardiff::FrameAttentionParams p = ardiff::bindings::params(tensors, table, sizes, strides, scale);
  const ardiff::StreamKWork work =
      ardiff::stream_k_work({s[0], s[1], s[2], s[3], s[4], s[5]}, pointer<const std::int32_t>(plan),
                            pointer<float>(workspace), pointer<std::int32_t>(error), p.dim, block_rows);
  py::gil_scoped_release release;
  return ardiff::bindings::on_device(device, [&] {
    return ardiff::cuda::frame_attention_sm90<T>(p, work, reinterpret_cast<cudaStream_t>(stream));
  });
}

}  // namespace

ARDIFF_BINDING(frame_attention_sm90) {
  py::module_ cuda = ardiff::bindings::cuda_module(m);
  cuda.def("frame_attention_sm90_bfloat16", &launch<ardiff::BFloat16>);
  cuda.def("frame_attention_sm90_float16", &launch<ardiff::Float16>);
}
#endif
