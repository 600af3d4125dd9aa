// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ardiff/frame_attention.h"

namespace ardiff::bindings {

// Whether the offsets of a table, which both kinds of parameters have, fit one another. It was validated when
// it was built; this catches one that was changed since.
template <class Table>
bool offsets_fit(const Table& t) {
  bool good = t.frame_ptr[0] == 0 && t.group_ptr[0] == 0 && t.page_ptr[0] == 0;
  for (std::int64_t g = 0; good && g < t.groups; ++g) {
    const std::int64_t entries = t.page_ptr[g + 1] - t.page_ptr[g];
    good = entries >= 0 && t.group_ptr[g] <= t.group_ptr[g + 1];
    for (std::int64_t f = t.group_ptr[g]; good && f < t.group_ptr[g + 1]; ++f) {
      good = t.frame_ptr[f] <= t.frame_ptr[f + 1] && t.seen[f] >= 0 && t.seen[f] <= entries;
    }
  }
  return good;
}

// The kernels trust the table: this also catches one that belongs to another batch or pool, before memory is
// read that is not theirs.
inline bool table_fits(const FrameAttentionParams& p, std::int64_t tokens) {
  bool good = offsets_fit(p);
  const std::int64_t entries = good ? p.page_ptr[p.groups] : 0;
  for (std::int64_t e = 0; good && e < entries; ++e) {
    good = p.pages[e] >= 0 && p.pages[e] < p.num_pages && p.valid[e] >= 0 && p.valid[e] <= p.page_rows;
  }
  return good && p.frame_ptr[p.group_ptr[p.groups]] == tokens;
}

}  // namespace ardiff::bindings
