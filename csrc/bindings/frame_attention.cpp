// SPDX-License-Identifier: Apache-2.0
// frame_attention and frame_attention_backward for ardiff_engine/ops/frame_attention.py, and the launchers of
// the CUDA kernel for frame_attention_cuda.py.
#include "ardiff/attention_work.h"
#include "binding.h"
#include "cpu/dispatch.h"
#include "cuda.h"
#include "frame_attention_params.h"

ARDIFF_DISPATCH(void, frame_attention, const ardiff::FrameAttentionParams& p)
ARDIFF_DISPATCH(void, frame_attention_backward, const ardiff::FrameAttentionBackwardParams& p)

#if defined(ARDIFF_WITH_CUDA)
namespace ardiff::cuda {
template <class T>
cudaError_t frame_attention(const FrameAttentionParams& p, const AttentionWork& work, cudaStream_t stream);
}
#endif

namespace py = pybind11;
using ardiff::FrameAttentionParams;
using ardiff::bindings::Integers8;
using ardiff::bindings::params;
using ardiff::bindings::pointer;

namespace {

// The kernels trust the table. It was validated when it was built; this catches one that was changed since,
// before it reads memory that is not the pool's.
void check(const FrameAttentionParams& p, std::int64_t tokens) {
  bool good = p.frame_ptr[0] == 0 && p.group_ptr[0] == 0 && p.page_ptr[0] == 0;
  for (std::int64_t g = 0; good && g < p.groups; ++g) {
    const std::int64_t entries = p.page_ptr[g + 1] - p.page_ptr[g];
    good = entries >= 0 && p.group_ptr[g] <= p.group_ptr[g + 1];
    for (std::int64_t f = p.group_ptr[g]; good && f < p.group_ptr[g + 1]; ++f) {
      good = p.frame_ptr[f] <= p.frame_ptr[f + 1] && p.seen[f] >= 0 && p.seen[f] <= entries;
    }
    for (std::int64_t e = p.page_ptr[g]; good && e < p.page_ptr[g + 1]; ++e) {
      good = p.pages[e] >= 0 && p.pages[e] < p.num_pages && p.valid[e] >= 0 && p.valid[e] <= p.page_rows;
    }
  }
  if (!good || p.frame_ptr[p.group_ptr[p.groups]] != tokens) {
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

#if defined(ARDIFF_WITH_CUDA)
// As `forward`, with a table on the device, and of the schedule: its buffer and its workspace (0: none), the
// sizes that attention_work returned. Returns a CUDA status.
template <class T>
int launch(const std::array<std::int64_t, 5>& tensors, const Integers8& table,
           const std::array<std::int64_t, 6>& sizes, const Integers8& strides, float scale,
           std::uintptr_t plan, std::uintptr_t workspace, const std::array<std::int32_t, 6>& plan_sizes,
           std::uintptr_t error, int device, std::uintptr_t stream) {
  const FrameAttentionParams p = params(tensors, table, sizes, strides, scale);
  const ardiff::AttentionPlanSizes work_sizes{plan_sizes[0], plan_sizes[1], plan_sizes[2],
                                              plan_sizes[3], plan_sizes[4], plan_sizes[5]};
  const ardiff::AttentionWork work =
      ardiff::attention_work(work_sizes, pointer<const std::int32_t>(plan), pointer<float>(workspace),
                             pointer<std::int32_t>(error), p.kv_heads, p.dim);
  py::gil_scoped_release release;
  return ardiff::bindings::on_device(device, [&] {
    return ardiff::cuda::frame_attention<T>(p, work, reinterpret_cast<cudaStream_t>(stream));
  });
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
}
