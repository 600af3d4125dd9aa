// SPDX-License-Identifier: Apache-2.0
// A FrameTable in host memory, from what Python passes: what the schedules of frame attention are built from.
#pragma once

#include <pybind11/stl.h>

#include <array>

#include "ardiff/attention_work.h"
#include "attention_table.h"
#include "binding.h"

namespace ardiff::bindings {

// table: host addresses of frame_ptr, group_ptr, page_ptr, valid, seen.
inline HostFrameTable host_table(const std::array<std::uintptr_t, 5>& table, std::int64_t groups,
                                 std::int64_t heads, std::int64_t kv_heads, int multiprocessors) {
  if (kv_heads < 1 || heads % kv_heads || multiprocessors < 1) {
    throw py::value_error(
        "attention_work: heads must be a multiple of kv_heads, and multiprocessors positive");
  }
  const auto integers = [&](std::size_t i) { return pointer<const std::int32_t>(table[i]); };
  const HostFrameTable host{integers(0), integers(1), integers(2), integers(3), integers(4), groups};
  if (!offsets_fit(host)) throw py::index_error("attention_work: the table does not fit itself");
  return host;
}

}  // namespace ardiff::bindings
