// SPDX-License-Identifier: Apache-2.0
// Threads, limits and shared memory of the Hopper frame attention kernel: what launchers and kernels both
// know.
#pragma once

#include "ardiff/attention_stream_k.h"
#include "cuda/sm90/slab.cuh"

namespace ardiff::cuda {

constexpr int kGroupThreads = 128;  // a warpgroup
constexpr int kConsumers = 2;       // warpgroups that compute, 64 query rows each
constexpr int kStreamThreads = (1 + kConsumers) * kGroupThreads;
constexpr int kGroupRows = 64;
constexpr int kMostShared = 227 * 1024;  // what a block of sm_90 can have

// 16 keys of a step.
struct StepKeys {
  float bias;           // in units of log 2
  std::int32_t rows;    // that exist: 0 .. 16
  std::int32_t box;     // a query row sees it if its limit is above this
  std::int32_t spoilt;  // values that are not finite were taken out: rows that see them become NaN
};

template <int kKeys>
struct StepList {
  StepKeys keys[kKeys / 16];
  // All query rows of the tile see every key that exists.
  std::int32_t whole;
  // And all keys exist, and there is no bias.
  std::int32_t plain;
};

template <int kDim, int kKeys>
struct StreamSizes {
  static constexpr int kSlabs = (kDim + kSlabColumns - 1) / kSlabColumns;
  static constexpr int kSlotSlabBytes = kKeys * kSlabRowBytes;
  static constexpr int kSlotBytes = kSlabs * kSlotSlabBytes;
  static constexpr int kQuerySlabBytes = kStreamRows * kSlabRowBytes;
  static constexpr int kQueryBytes = kSlabs * kQuerySlabBytes;
  // K and V of a step are loads 2 s and 2 s + 1, in slot load % kSlots. Three steps, if they fit.
  static constexpr int kSlots = 6;
  // A list is written when K is loaded, and read until V of its step is released. Before K of step s is
  // loaded, the slot of load 2 s - kSlots was released, so V of step s - kLists is.
  static constexpr int kLists = kSlots / 2 + 1;
  static constexpr int kScrubs = kSlots / 2;  // steps with V under way
  static constexpr int kBarriers = 2 * kSlots + kScrubs;
  static constexpr int kBytes = kSlabAlignment + kQueryBytes + kSlots * kSlotBytes + kBarriers * 8 +
                                kLists * static_cast<int>(sizeof(StepList<kKeys>)) + kStreamRows * 4;
  static_assert(kBytes <= kMostShared, "fewer slots");
};

}  // namespace ardiff::cuda
