// SPDX-License-Identifier: Apache-2.0
// The two warps of the Hopper frame attention kernel that do not multiply.
//
// The *producer* looks every box of a step up, publishes what consumers need to know of it, and starts its
// copies. It runs ahead of the consumers by the ring's three steps.
//
// The *scrubber* makes V safe to multiply. Rows of a page that do not exist may hold anything, and so may
// pages that only some query rows of a tile see: a weight of 0 would not save a product from a NaN there. So,
// where a step is not `plain`, the scrubber waits for V, zeroes what does not exist, takes out values that
// are not finite (unless the step is `whole`), and only then lets the consumers have it. Rows that do see
// what was taken out become NaN as a whole: a failing frame fails alone. In plain and whole steps such a
// value reaches the results as in any product: its own column.
#pragma once

#include "cuda/frame_attention_finite.cuh"
#include "cuda/sm90/frame_attention_memory.cuh"

namespace ardiff::cuda {

// Where a box begins. One that is not to be seen lies behind the last page: the copy engine fills it with
// zeros and reads nothing.
struct Box {
  std::int32_t page, row, rows;  // rows: that exist, of the 16 of a lane's key group
  float bias;
};

// Lane g looks up the box that keys 16 g .. 16 g + 15 of the step lie in.
__device__ inline Box find_box(const FrameAttentionParams& p, const StreamKWork& work,
                               const AttentionTile& tile, int box, int row_in_box) {
  const Box missing{static_cast<std::int32_t>(p.num_pages), 0, 0, 0.0f};
  if (box >= tile.last) return missing;
  const KeyBlock at = work.blocks[tile.block + box];
  const std::int32_t page = p.pages[at.entry], valid = p.valid[at.entry];
  if (page < 0 || page >= p.num_pages || valid > p.page_rows) {
    set_bits(work.error, kBadView);
    return missing;
  }
  const std::int32_t left = valid - at.row - row_in_box;
  return {page, at.row, left < 0 ? 0 : left < 16 ? left : 16, p.bias ? p.bias[at.entry] * kLog2E : 0.0f};
}

// Boxes that all query rows of the tile see.
__device__ inline int fewest_boxes(const StreamKWork& work, const AttentionTile& tile, int lane) {
  int fewest = tile.last;
  for (int i = lane; i < tile.frames; i += 32) {
    const int limit = work.limits[tile.frame + i];
    fewest = fewest < limit ? fewest : limit;
  }
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = shuffle_xor(fewest, distance);
    fewest = fewest < other ? fewest : other;
  }
  return fewest;
}

template <int kDim, int kKeys>
__device__ void produce(const StreamMemory<kDim, kKeys>& shared, const TensorMap& k_map,
                        const TensorMap& v_map, const FrameAttentionParams& p, const StreamKWork& work) {
  using Memory = StreamMemory<kDim, kKeys>;
  const int lane = static_cast<int>(threadIdx.x) % 32, worker = static_cast<int>(blockIdx.x);
  const int block_rows = work.block_rows, boxes = step_boxes(block_rows);
  const int key = lane * 16, row_in_box = key % block_rows;
  const bool mine = key < kKeys, starts = mine && row_in_box == 0;  // starts: this lane copies the box
  int step = 0, scrubs = 0;
  for (int i = work.begins[worker]; i < work.begins[worker + 1]; ++i) {
    // Copied: the compiler would read the item again for every box, as copies may write any memory.
    const AttentionTile tile = work.items[i].tile;
    const std::int32_t kv_head = work.items[i].kv_head;
    const int fewest = fewest_boxes(work, tile, lane), steps = steps_of(tile, boxes);
    for (int s = 0; s < steps; ++s, ++step) {
      const int first = tile.first + s * boxes;
      Box box{static_cast<std::int32_t>(p.num_pages), 0, 16, 0.0f};
      if (mine) box = find_box(p, work, tile, first + key / block_rows, row_in_box);
      const int last = first + boxes < tile.last ? first + boxes : tile.last;
      const bool whole = last <= fewest;
      const bool plain = whole && !any_lane(box.rows < 16 || box.bias != 0.0f);

      const auto load = [&](int number, const TensorMap& map, std::uint32_t arrival) {
        if (lane == 0) mbarrier_arrive_expect(arrival, Memory::kSlotBytes);
        warp_barrier();
        if (!starts) return;
#pragma unroll
        for (int slab = 0; slab < Memory::kSlabs; ++slab) {
          const auto to = static_cast<std::uint32_t>(slab * Memory::kSlotSlabBytes + key * kSlabRowBytes);
          copy_box(shared.slot(number) + to, map, slab * kSlabColumns, box.row, kv_head, box.page, arrival);
        }
      };
      const int k = 2 * step, v = k + 1;
      mbarrier_wait(shared.empty(k), Memory::parity(k) ^ 1);
      StepList<kKeys>& list = shared.list(step);
      if (mine) list.keys[lane] = {box.bias, box.rows, first + key / block_rows, 0};
      if (lane == 0) list.whole = whole, list.plain = plain;
      warp_barrier();  // lane 0 publishes what all lanes wrote
      load(k, k_map, shared.full(k));
      mbarrier_wait(shared.empty(v), Memory::parity(v) ^ 1);
      load(v, v_map, plain ? shared.full(v) : shared.landed(scrubs));
      scrubs += !plain;
    }
  }
}

// Zeroes the rows of V that do not exist: at the end of a page, and behind the last one.
template <int kDim, int kKeys>
__device__ void zero_missing(std::uint32_t slot, const StepList<kKeys>& list, int lane) {
  using Memory = StreamMemory<kDim, kKeys>;
  constexpr int kChunks = kDim / 8;
#pragma unroll 1
  for (int group = 0; group < kKeys / 16; ++group) {
    for (int index = list.keys[group].rows * kChunks + lane; index < 16 * kChunks; index += 32) {
      store_shared(slot + chunk_offset(Memory::kSlotSlabBytes, 16 * group + index / kChunks, index % kChunks),
                   uint4{0, 0, 0, 0});
    }
  }
}

// The same, and replaces values of V that must not be multiplied by zeros.
template <class T, int kDim, int kKeys>
__device__ void scrub_values(std::uint32_t slot, StepList<kKeys>& list, int lane) {
  using Memory = StreamMemory<kDim, kKeys>;
  constexpr int kChunks = kDim / 8;
#pragma unroll 4
  for (int index = lane; index < kKeys * kChunks; index += 32) {
    const int row = index / kChunks;
    const std::uint32_t at = slot + chunk_offset(Memory::kSlotSlabBytes, row, index % kChunks);
    StepKeys& keys = list.keys[row / 16];
    if (row % 16 >= keys.rows) {
      store_shared(at, uint4{0, 0, 0, 0});
      continue;
    }
    uint4 x = load_shared(at);
    bool spoilt = remove_non_finite<T>(x.x);
    spoilt |= remove_non_finite<T>(x.y);
    spoilt |= remove_non_finite<T>(x.z);
    spoilt |= remove_non_finite<T>(x.w);
    if (!spoilt) continue;
    store_shared(at, x);
    keys.spoilt = 1;
  }
}

template <class T, int kDim, int kKeys>
__device__ void scrub(const StreamMemory<kDim, kKeys>& shared, const StreamKWork& work) {
  using Memory = StreamMemory<kDim, kKeys>;
  const int lane = static_cast<int>(threadIdx.x) % 32, worker = static_cast<int>(blockIdx.x);
  int step = 0, scrubs = 0;
  for (int i = work.begins[worker]; i < work.begins[worker + 1]; ++i) {
    const int steps = steps_of(work.items[i].tile, step_boxes(work.block_rows));
    for (int s = 0; s < steps; ++s, ++step) {
      const int k = 2 * step, v = k + 1;
      StepList<kKeys>& list = shared.list(step);
      mbarrier_wait(shared.full(k), Memory::parity(k));
      const bool plain = list.plain;
      warp_barrier();
      if (lane == 0) mbarrier_arrive(shared.empty(k));
      if (!plain) {
        mbarrier_wait(shared.landed(scrubs), Memory::scrub_parity(scrubs));
        if (list.whole) {
          zero_missing<kDim, kKeys>(shared.slot(v), list, lane);
        } else {
          scrub_values<T, kDim, kKeys>(shared.slot(v), list, lane);
        }
        fence_async();
        warp_barrier();
        if (lane == 0) mbarrier_arrive(shared.full(v));
        ++scrubs;
      }
      // In its turn, so that this warp never falls behind by a round of the ring.
      mbarrier_wait(shared.full(v), Memory::parity(v));
      if (lane == 0) mbarrier_arrive(shared.empty(v));
    }
  }
}

}  // namespace ardiff::cuda
