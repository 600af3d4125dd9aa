// SPDX-License-Identifier: Apache-2.0
// A FrameTable in host memory, from what Python passes: what the schedules of frame attention are built from.
#pragma once

#include <pybind11/stl.h>

#include <array>

#include "ardiff/attention_work.h"
#include "binding.h"

namespace ardiff::bindings {

// A FrameTable is validated when it is built; this catches one that was changed since.
inline void check_table(const HostFrameTable& t) {
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

// table: host addresses of frame_ptr, group_ptr, page_ptr, valid, seen.
inline HostFrameTable host_table(const std::array<std::uintptr_t, 5>& table, std::int64_t groups,
                                 std::int64_t heads, std::int64_t kv_heads, int multiprocessors) {
  if (kv_heads < 1 || heads % kv_heads || multiprocessors < 1) {
    throw py::value_error(
        "attention_work: heads must be a multiple of kv_heads, and multiprocessors positive");
  }
  const auto integers = [&](std::size_t i) { return pointer<const std::int32_t>(table[i]); };
  const HostFrameTable host{integers(0), integers(1), integers(2), integers(3), integers(4), groups};
  check_table(host);
  return host;
}

}  // namespace ardiff::bindings
