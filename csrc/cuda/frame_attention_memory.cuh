// SPDX-License-Identifier: Apache-2.0
// Shared memory of the tensor-core frame attention kernel: where rows lie, and how they get there.
//
// Rows of q, K and V are stored as 16-byte chunks, kDim / 8 to a row; kDim is the head dimension rounded up
// to what is compiled (72 -> 80), the missing chunks are zeros that only shared memory has. ldmatrix reads
// the same chunk of eight consecutive rows at once and is free of bank conflicts when these lie in eight
// different 16-byte columns of the 128 bytes that shared memory delivers per cycle. Unswizzled, row r starts
// at column r * chunks mod 8: all eight rows in one column for 64 and 128, in two for 96, in four for 80.
// With g = gcd(chunks, 8) the starts repeat every 8 / g rows, so the chunk number is XORed with (r / (8 / g))
// mod g: the g rows that would collide take the g columns of their aligned group of g.
#pragma once

#include "ardiff/device_error.h"
#include "ardiff/frame_attention.h"
#include "ardiff/scalar.h"
#include "cuda/frame_attention_sizes.h"
#include "cuda/ptx.cuh"

namespace ardiff::cuda {

__device__ inline float infinity() { return float_of_bits(0x7F800000u); }
__device__ inline float not_a_number() { return float_of_bits(0x7FC00000u); }

template <int kDim>
struct Swizzle {
  static constexpr int kChunks = kDim / 8;
  static constexpr int kGroup = kChunks % 8 == 0 ? 8 : kChunks % 4 == 0 ? 4 : 2;  // gcd(chunks, 8)
  static_assert(kDim % 16 == 0, "mma takes 16 columns");

  // What the chunk number of a row is XORed with. It has a period of 8 rows.
  __device__ static int mask(int row) { return row / (8 / kGroup) % kGroup; }
  __device__ static std::uint32_t offset(int row, int chunk) {
    return static_cast<std::uint32_t>(row * kChunks + (chunk ^ mask(row))) * 16;
  }
};

template <int kDim, int kRows>
struct SharedMemory {
  using Bytes = SharedBytes<kDim, kRows>;

  __device__ explicit SharedMemory(unsigned char* memory)
      : q(memory),
        ring(memory + Bytes::kQueries),
        keys(reinterpret_cast<Keys*>(ring + Bytes::kRing)),
        limits(reinterpret_cast<std::int32_t*>(keys + kKeyLists * kStepBlocks)),
        sights(reinterpret_cast<Sight*>(limits + kRows)) {}

  unsigned char *q, *ring;
  Keys* keys;
  std::int32_t* limits;  // key blocks that a row sees
  Sight* sights;         // per warp

  __device__ Keys* list(int step) const { return keys + step % kKeyLists * kStepBlocks; }
  // Loads are numbered K of step 0, V of step 0, K of step 1, ...
  __device__ std::uint32_t slot(int load) const {
    return shared_address(ring) + static_cast<std::uint32_t>(load % Ring<kDim>::kSlots * Bytes::kSlot);
  }
};

// Looks up key block `block` of the tile's group; beyond the part, a block without rows.
__device__ inline Keys resolve(const FrameAttentionParams& p, const AttentionWork& work,
                               const AttentionTile& tile, int kv_head, int block) {
  Keys keys{0, 0, 0.0f, 0};
  if (block >= tile.last) return keys;
  const KeyBlock at = work.blocks[tile.block + block];
  const std::int32_t page = p.pages[at.entry], valid = p.valid[at.entry], left = valid - at.row;
  if (page < 0 || page >= p.num_pages || valid > p.page_rows) {
    set_bits(work.error, kBadView);
    return keys;
  }
  keys.k = page * p.k_page + kv_head * p.k_head + at.row * p.k_row;
  keys.v = page * p.v_page + kv_head * p.v_head + at.row * p.v_row;
  keys.bias = p.bias ? p.bias[at.entry] * kLog2E : 0.0f;
  keys.rows = left < 0 ? 0 : left < kKeyBlock ? left : kKeyBlock;
  return keys;
}

// Starts the copy of a step's rows of K (or V). Rows that do not exist become zeros without being read: a
// weight of 0 would not save the product from a NaN there.
template <int kDim>
__device__ void load_keys(std::uint32_t slot, const std::uint16_t* pool, std::int64_t row_stride,
                          const Keys* keys, bool values, int dim) {
  constexpr int kChunks = Swizzle<kDim>::kChunks;
  static_assert(kStepKeys * kChunks % kThreads == 0, "every thread copies equally many chunks");
  const int thread = opaque(static_cast<int>(threadIdx.x));
#pragma unroll
  for (int i = 0; i < kStepKeys * kChunks / kThreads; ++i) {
    const int index = thread + i * kThreads, row = index / kChunks, chunk = index % kChunks;
    const Keys& block = keys[row / kKeyBlock];
    const int in_block = row % kKeyBlock;
    const bool exists = in_block < block.rows && chunk * 8 < dim;
    const std::int64_t offset = (values ? block.v : block.k) + in_block * row_stride + chunk * 8;
    copy_async(slot + Swizzle<kDim>::offset(row, chunk), pool + (exists ? offset : 0), exists ? 16 : 0);
  }
}

// A query row of a tile: token and head.
struct QueryRow {
  std::int64_t token, head;
  __device__ QueryRow(const FrameAttentionParams& p, std::int32_t first_token, int row, int kv_head) {
    const int share = static_cast<int>(p.heads / p.kv_heads);
    token = first_token + row / share;
    head = static_cast<std::int64_t>(kv_head) * share + row % share;
  }
};

template <int kDim, int kRows>
__device__ void load_queries(const FrameAttentionParams& p, const AttentionTile& tile, int kv_head,
                             std::uint32_t shared) {
  constexpr int kChunks = Swizzle<kDim>::kChunks;
  const auto* q = reinterpret_cast<const std::uint16_t*>(p.q);
  for (int index = static_cast<int>(threadIdx.x); index < kRows * kChunks; index += kThreads) {
    const int row = index / kChunks, chunk = index % kChunks;
    const bool exists = row < tile.rows && chunk * 8 < p.dim;
    const QueryRow at(p, tile.token, tile.row + row, kv_head);
    const std::int64_t offset = at.token * p.q_token + at.head * p.q_head + chunk * 8;
    copy_async(shared + Swizzle<kDim>::offset(row, chunk), q + (exists ? offset : 0), exists ? 16 : 0);
  }
}

// Key blocks that a query row of the tile sees: those of the last frame that begins at or before its token.
__device__ inline std::int32_t row_limit(const FrameAttentionParams& p, const std::int32_t* limits,
                                         const AttentionTile& tile, int row) {
  const QueryRow at(p, tile.token, tile.row + row, 0);
  std::int32_t low = tile.frame, high = tile.frame + tile.frames;
  while (high - low > 1) {
    const std::int32_t middle = (low + high) / 2;
    if (p.frame_ptr[middle] <= at.token) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return limits[low];
}

}  // namespace ardiff::cuda
