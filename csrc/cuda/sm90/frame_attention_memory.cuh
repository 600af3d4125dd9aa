// SPDX-License-Identifier: Apache-2.0
// Shared memory of the Hopper frame attention kernel: the ring of K and V, the rows of q, and what is known
// of each step.
//
// q, K and V lie in slabs of 64 columns (slab.cuh), kSlabs of them side by side; columns beyond the head
// dimension are zero, by the copy engine for K and V. S takes the 16-column pieces that a head dimension has,
// O takes whole slabs: for 72 to 96 columns, O is computed 128 wide.
#pragma once

#include "cuda/frame_attention_memory.cuh"
#include "cuda/sm90/frame_attention_sizes.h"
#include "cuda/sm90/ptx.cuh"

namespace ardiff::cuda {

// Registers per thread at launch: 65536 / 384, down to a multiple of 8. The producer's warpgroup gives away
// what the consumers take: 128 x 40 + 256 x 232 <= 384 x 168.
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

template <int kDim, int kKeys>
struct StreamMemory : StreamSizes<kDim, kKeys> {
  using Sizes = StreamSizes<kDim, kKeys>;
  using Sizes::kBarriers, Sizes::kLists, Sizes::kQueryBytes, Sizes::kScrubs, Sizes::kSlotBytes, Sizes::kSlots;

  // Dynamic shared memory need not start where a slab may.
  __device__ explicit StreamMemory(unsigned char* memory) {
    const std::uint32_t start = shared_address(memory),
                        pad = (kSlabAlignment - start % kSlabAlignment) % kSlabAlignment;
    q = start + pad;
    q_bytes = memory + pad;
    ring = q + kQueryBytes;
    barriers = ring + kSlots * kSlotBytes;
    unsigned char* rest = memory + pad + kQueryBytes + kSlots * kSlotBytes + kBarriers * 8;
    lists = reinterpret_cast<StepList<kKeys>*>(rest);
    limits = reinterpret_cast<std::int32_t*>(lists + kLists);
  }

  std::uint32_t q, ring, barriers;
  unsigned char* q_bytes;  // where q is, for ordinary stores
  StepList<kKeys>* lists;
  std::int32_t* limits;  // boxes that a query row sees

  __device__ std::uint32_t slot(int load) const {
    return ring + static_cast<std::uint32_t>(load % kSlots * kSlotBytes);
  }
  // Completes when a load has arrived (and V has been scrubbed).
  __device__ std::uint32_t full(int load) const { return barriers + load % kSlots * 8; }
  // Completes when all readers are done with the load.
  __device__ std::uint32_t empty(int load) const { return barriers + (kSlots + load % kSlots) * 8; }
  // Completes when V of the n-th step that needs scrubbing has arrived.
  __device__ std::uint32_t landed(int scrub) const { return barriers + (2 * kSlots + scrub % kScrubs) * 8; }
  __device__ StepList<kKeys>& list(int step) const { return lists[step % kLists]; }

  // Parity of the phase that a load completes in its slot.
  __device__ static int parity(int load) { return load / kSlots % 2; }
  __device__ static int scrub_parity(int scrub) { return scrub / kScrubs % 2; }
};

// The steps of a tile.
__device__ inline int steps_of(const AttentionTile& tile, int boxes) {
  return (tile.last - tile.first + boxes - 1) / boxes;
}

}  // namespace ardiff::cuda
