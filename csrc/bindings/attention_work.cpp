// SPDX-License-Identifier: Apache-2.0
// The schedule of frame attention on a GPU, for Python: built here from host tables, copied to the device
// there.
#include "host_frame_table.h"

namespace py = pybind11;
using ardiff::AttentionPlan;
using ardiff::AttentionPlanSizes;
using ardiff::HostFrameTable;

namespace {

using Sizes = std::array<std::int32_t, 6>;  // tiles, merges, blocks, frames, tile_rows, parts

// table: host addresses of frame_ptr, group_ptr, page_ptr, valid, seen. with_room: see `roomy`. Returns the
// plan's int32 buffer and its sizes.
py::tuple attention_plan(const std::array<std::uintptr_t, 5>& table, std::int64_t groups, std::int64_t heads,
                         std::int64_t kv_heads, int multiprocessors, bool with_room) {
  const HostFrameTable host = ardiff::bindings::host_table(table, groups, heads, kv_heads, multiprocessors);
  AttentionPlan built;
  {
    py::gil_scoped_release release;
    built = ardiff::plan_attention(host, heads, kv_heads, multiprocessors);
    if (with_room) built = ardiff::roomy(built);
  }
  const AttentionPlanSizes& s = built.sizes;
  return py::make_tuple(py::bytearray(reinterpret_cast<const char*>(built.buffer.data()),
                                      built.buffer.size() * sizeof(std::int32_t)),
                        Sizes{s.tiles, s.merges, s.blocks, s.frames, s.tile_rows, s.parts});
}

std::int64_t attention_plan_floats(const Sizes& s, std::int64_t kv_heads, std::int64_t dim) {
  return ardiff::partial_floats({s[0], s[1], s[2], s[3], s[4], s[5]}, kv_heads, dim);
}

}  // namespace

ARDIFF_BINDING(attention_work) {
  m.def("attention_work", &attention_plan, py::arg(), py::arg(), py::arg(), py::arg(), py::arg(),
        py::arg("with_room") = false);
  m.def("attention_partial_floats", &attention_plan_floats);
}
