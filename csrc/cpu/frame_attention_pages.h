// SPDX-License-Identifier: Apache-2.0
// Groups that list a page in common, directly or through others: the parts of a table whose gradients of K
// and V do not meet. In clips that is a clip each; teacher forcing has many groups per clip.
#pragma once

#include "frame_attention_walk.h"

namespace ardiff::cpu::ARDIFF_ISA {

class GroupsByPage {
 public:
  explicit GroupsByPage(const FrameAttentionParams& p)
      : groups_(p.groups),
        memory_((2 * groups_ + p.num_pages) * static_cast<std::int64_t>(sizeof(std::int64_t)) + 256),
        root_(memory_.take<std::int64_t>(groups_)),
        first_(memory_.take<std::int64_t>(groups_)) {
    std::int64_t* lister = memory_.take<std::int64_t>(p.num_pages);  // some group that lists the page
    for (std::int64_t page = 0; page < p.num_pages; ++page) lister[page] = -1;
    for (std::int64_t g = 0; g < groups_; ++g) {
      root_[g] = g;
      for (std::int64_t e = p.page_ptr[g]; e < p.page_ptr[g + 1]; ++e) {
        std::int64_t& other = lister[p.pages[e]];
        if (other >= 0) join(find(other), find(g));
        other = g;
      }
    }
    for (std::int64_t g = 0; g < groups_; ++g) {
      root_[g] = find(g);
      if (root_[g] == g) first_[count_++] = g;
    }
  }

  std::int64_t count() const { return count_; }
  // body(group) for the groups of a part, in table order
  template <class Body>
  void each(std::int64_t part, const Body& body) const {
    for (std::int64_t g = first_[part]; g < groups_; ++g) {
      if (root_[g] == first_[part]) body(g);
    }
  }

 private:
  std::int64_t find(std::int64_t g) const {
    while (root_[g] != g) g = root_[g] = root_[root_[g]];
    return g;
  }
  // The lower index leads, so that a part begins with its leader.
  void join(std::int64_t a, std::int64_t b) const { (a < b ? root_[b] : root_[a]) = a < b ? a : b; }

  std::int64_t groups_, count_ = 0;
  Scratch memory_;
  std::int64_t *root_, *first_;
};

}  // namespace ardiff::cpu::ARDIFF_ISA
