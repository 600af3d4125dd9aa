// SPDX-License-Identifier: Apache-2.0
// The schedule of frame attention on Hopper, for Python: built here from host tables, copied to the device
// there.
#include "ardiff/attention_stream_k.h"

#include "host_frame_table.h"

namespace py = pybind11;
using ardiff::StreamKPlan;
using ardiff::StreamKSizes;

namespace {

using Sizes = std::array<std::int32_t, 6>;  // items, merges, blocks, frames, workers, parts

// As attention_work, in boxes of block_rows.
py::tuple stream_k_plan(const std::array<std::uintptr_t, 5>& table, std::int64_t groups, std::int64_t heads,
                        std::int64_t kv_heads, int multiprocessors, std::int32_t block_rows, bool with_room) {
  if (block_rows != 112 && (block_rows < 16 || 128 % block_rows)) {
    throw py::value_error("attention_stream_k: block_rows must be 112 or a divisor of 128 from 16 on");
  }
  const ardiff::HostFrameTable host =
      ardiff::bindings::host_table(table, groups, heads, kv_heads, multiprocessors);
  StreamKPlan built;
  {
    py::gil_scoped_release release;
    built = ardiff::plan_stream_k(host, heads, kv_heads, multiprocessors, block_rows);
    if (with_room) built = ardiff::roomy(built);
  }
  const StreamKSizes& s = built.sizes;
  return py::make_tuple(py::bytearray(reinterpret_cast<const char*>(built.buffer.data()),
                                      built.buffer.size() * sizeof(std::int32_t)),
                        Sizes{s.items, s.merges, s.blocks, s.frames, s.workers, s.parts});
}

std::int64_t stream_k_floats(const Sizes& s, std::int64_t dim) {
  return ardiff::partial_floats(StreamKSizes{s[0], s[1], s[2], s[3], s[4], s[5]}, dim);
}

}  // namespace

ARDIFF_BINDING(attention_stream_k) {
  m.def("attention_stream_k", &stream_k_plan, py::arg(), py::arg(), py::arg(), py::arg(), py::arg(),
        py::arg(), py::arg("with_room") = false);
  m.def("attention_stream_k_floats", &stream_k_floats);
}
