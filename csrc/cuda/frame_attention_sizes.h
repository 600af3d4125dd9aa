// SPDX-License-Identifier: Apache-2.0
// Threads, limits and shared memory of the frame attention kernels: what launchers and kernels both know.
#pragma once

#include "ardiff/attention_work.h"

namespace ardiff::cuda {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kMostColumns = 128;  // of the tensor-core kernel
constexpr int kFloatColumns = 8;   // of the float kernel, per lane
constexpr int kStepKeys = kStepBlocks * kKeyBlock;
constexpr int kKeyLists = 3;  // steps whose key blocks are known at a time: computed, arriving, to be loaded

// A key block, resolved: what loads and softmax need of it.
struct Keys {
  std::int64_t k, v;  // element offset of its first row
  float bias;         // in units of log 2
  std::int32_t rows;  // that exist: 0 .. kKeyBlock
};

// What a warp sees of the key blocks: up to `most`; below `fewest` all of its rows do.
struct Sight {
  std::int32_t fewest, most;
};

// K and V of a step arrive separately, in a ring of slots of kStepKeys rows, so that three slots already keep
// two loads in flight. Limits per block of 128 rows: 80 KB at 128 lets an A100 (164 KB) hold two; sm_86 has
// 99 KB.
template <int kDim>
struct Ring {
  static constexpr int kSlots = kDim > 96 ? 3 : 4;
};

// Of the tensor-core kernel: query rows, then the ring, the key lists, the rows' limits, the warps' sights.
template <int kDim, int kRows>
struct SharedBytes {
  static constexpr int kRow = kDim * 2;
  static constexpr int kSlot = kStepKeys * kRow;
  static constexpr int kQueries = kRows * kRow;
  static constexpr int kRing = Ring<kDim>::kSlots * kSlot;
  static constexpr int kLists = kKeyLists * kStepBlocks * static_cast<int>(sizeof(Keys));
  static constexpr int kLimits = kRows * static_cast<int>(sizeof(std::int32_t));
  static constexpr int kSights = kWarps * static_cast<int>(sizeof(Sight));
  static constexpr int kAll = kQueries + kRing + kLists + kLimits + kSights;
  static_assert(kAll <= 99 * 1024, "the most that a block of sm_86 and sm_89 can have");
};

}  // namespace ardiff::cuda
