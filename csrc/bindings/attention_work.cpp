// SPDX-License-Identifier: Apache-2.0
// The schedule of frame attention on a GPU, for Python: built here from host tables, copied to the device
// there.
#include "ardiff/attention_work.h"

#include <pybind11/stl.h>

#include <array>

#include "binding.h"

namespace py = pybind11;
using ardiff::AttentionPlan;
using ardiff::AttentionPlanSizes;
using ardiff::HostFrameTable;
using ardiff::bindings::pointer;

namespace {

using Sizes = std::array<std::int32_t, 6>;  // tiles, merges, blocks, frames, tile_rows, parts

// A FrameTable is validated when it is built; this catches one that was changed since.
void check(const HostFrameTable& t) {
  bool good = t.frame_ptr[0] == 0 && t.group_ptr[0] == 0 && t.page_ptr[0] == 0;
  for (std::int64_t g = 0; good && g < t.groups; ++g) {
    const std::int64_t entries = t.page_ptr[g + 1] - t.page_ptr[g];
    good = entries >= 0 && t.group_ptr[g] <= t.group_ptr[g + 1];
    for (std::int64_t f = t.group_ptr[g]; good && f < t.group_ptr[g + 1]; ++f) {
      good = t.frame_ptr[f] <= t.frame_ptr[f + 1] && t.seen[f] >= 0 && t.seen[f] <= entries;
    }
  }
  if (!good) throw py::index_error("attention_work: the table does not fit itself");
}

// table: host addresses of frame_ptr, group_ptr, page_ptr, valid, seen. Returns the plan's int32 buffer and
// its sizes.
py::tuple plan(const std::array<std::uintptr_t, 5>& table, std::int64_t groups, std::int64_t heads,
               std::int64_t kv_heads, int multiprocessors) {
  if (kv_heads < 1 || heads % kv_heads || multiprocessors < 1) {
    throw py::value_error(
        "attention_work: heads must be a multiple of kv_heads, and multiprocessors positive");
  }
  const auto integers = [&](std::size_t i) { return pointer<const std::int32_t>(table[i]); };
  const HostFrameTable host{integers(0), integers(1), integers(2), integers(3), integers(4), groups};
  check(host);
  AttentionPlan built;
  {
    py::gil_scoped_release release;
    built = ardiff::plan_attention(host, heads, kv_heads, multiprocessors);
  }
  const AttentionPlanSizes& s = built.sizes;
  return py::make_tuple(py::bytearray(reinterpret_cast<const char*>(built.buffer.data()),
                                      built.buffer.size() * sizeof(std::int32_t)),
                        Sizes{s.tiles, s.merges, s.blocks, s.frames, s.tile_rows, s.parts});
}

std::int64_t partial_floats(const Sizes& s, std::int64_t kv_heads, std::int64_t dim) {
  return ardiff::partial_floats({s[0], s[1], s[2], s[3], s[4], s[5]}, kv_heads, dim);
}

}  // namespace

ARDIFF_BINDING(attention_work) {
  m.def("attention_work", &plan);
  m.def("attention_partial_floats", &partial_floats);
}
