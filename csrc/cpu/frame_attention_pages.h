// SPDX-License-Identifier: Apache-2.0
// The page table read the other way round: for each page the entries that list it, in table order, and the
// work items (page, tile of its rows) of the pass over keys.
#pragma once

#include "frame_attention_walk.h"

namespace ardiff::cpu::ARDIFF_ISA {

class PagesInverted {
 public:
  explicit PagesInverted(const FrameAttentionParams& p)
      : entries_(p.page_ptr[p.groups]),
        pages_(p.num_pages),
        memory_((3 * pages_ + 3 + 2 * entries_) * static_cast<std::int64_t>(sizeof(std::int64_t)) + 512),
        start_(memory_.take<std::int64_t>(pages_ + 2)),
        tiles_(memory_.take<std::int64_t>(pages_ + 1)),
        rows_(memory_.take<std::int64_t>(pages_)),
        by_page_(memory_.take<std::int64_t>(entries_)),
        group_(memory_.take<std::int64_t>(entries_)) {
    for (std::int64_t i = 0; i < pages_ + 2; ++i) start_[i] = 0;
    for (std::int64_t i = 0; i < pages_; ++i) rows_[i] = 0;
    for (std::int64_t g = 0; g < p.groups; ++g) {
      for (std::int64_t e = p.page_ptr[g]; e < p.page_ptr[g + 1]; ++e) {
        group_[e] = g;
        ++start_[p.pages[e] + 2];
        if (p.valid[e] > rows_[p.pages[e]]) rows_[p.pages[e]] = p.valid[e];
      }
    }
    tiles_[0] = 0;
    for (std::int64_t i = 0; i < pages_; ++i) {
      start_[i + 2] += start_[i + 1];
      tiles_[i + 1] = tiles_[i] + EvenTiles(rows_[i]).count();
    }
    for (std::int64_t e = 0; e < entries_; ++e) by_page_[start_[p.pages[e] + 1]++] = e;
  }

  std::int64_t items() const { return tiles_[pages_]; }
  std::int64_t rows(std::int64_t page) const { return rows_[page]; }  // the most that an entry lists
  std::int64_t group(std::int64_t entry) const { return group_[entry]; }
  const std::int64_t* begin(std::int64_t page) const { return by_page_ + start_[page]; }
  const std::int64_t* end(std::int64_t page) const { return by_page_ + start_[page + 1]; }
  void find(std::int64_t item, std::int64_t* page, std::int64_t* tile) const {
    std::int64_t low = 0, high = pages_;  // the last page whose first item is <= item
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (tiles_[middle] <= item ? low : high) = middle;
    }
    *page = low;
    *tile = item - tiles_[low];
  }

 private:
  std::int64_t entries_, pages_;
  Scratch memory_;
  std::int64_t *start_, *tiles_, *rows_, *by_page_, *group_;
};

}  // namespace ardiff::cpu::ARDIFF_ISA
