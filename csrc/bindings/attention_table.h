// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ardiff/frame_attention.h"

namespace ardiff::bindings {

// The kernels trust the table. It was validated when it was built; this catches one that was changed since,
// or that belongs to another batch, before it reads memory that is not the pool's.
inline bool table_fits(const FrameAttentionParams& p, std::int64_t tokens) {
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
  return good && p.frame_ptr[p.group_ptr[p.groups]] == tokens;
}

}  // namespace ardiff::bindings
