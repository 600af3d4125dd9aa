// SPDX-License-Identifier: Apache-2.0
// What both schedules of frame attention (common/attention_work.cpp, common/attention_stream_k.cpp) begin
// with: the blocks of keys of a table, and the tiles of query rows.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "ardiff/attention_work.h"

namespace ardiff {

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// A tile before it is cut.
struct Rows {
  std::int32_t token, row, rows, frame, frames, block, last;
};

struct KeyBlocks {
  std::vector<KeyBlock> blocks;
  std::vector<std::int32_t> limits;   // per query frame
  std::vector<std::int32_t> offsets;  // per group, into blocks
};

// Blocks of `block_rows` keys; the last of a page entry may be shorter.
inline KeyBlocks key_blocks(const HostFrameTable& table, std::int32_t block_rows) {
  KeyBlocks keys;
  std::vector<std::int32_t> prefix;
  for (std::int64_t g = 0; g < table.groups; ++g) {
    const auto start = static_cast<std::int32_t>(keys.blocks.size());
    keys.offsets.push_back(start);
    prefix.assign(1, 0);
    for (std::int32_t e = table.page_ptr[g]; e < table.page_ptr[g + 1]; ++e) {
      for (std::int32_t row = 0; row < table.valid[e]; row += block_rows) keys.blocks.push_back({e, row});
      prefix.push_back(static_cast<std::int32_t>(keys.blocks.size()) - start);
    }
    for (std::int32_t f = table.group_ptr[g]; f < table.group_ptr[g + 1]; ++f) {
      keys.limits.push_back(prefix[static_cast<std::size_t>(table.seen[f])]);
    }
  }
  return keys;
}

// Tiles of one kv head, group by group.
inline std::vector<Rows> cut_rows(const HostFrameTable& table, const KeyBlocks& keys, std::int64_t share,
                                  std::int32_t tile_rows) {
  std::vector<Rows> tiles;
  for (std::int64_t g = 0; g < table.groups; ++g) {
    const std::int32_t end = table.group_ptr[g + 1], token = table.frame_ptr[table.group_ptr[g]];
    const std::int64_t rows = (table.frame_ptr[end] - token) * share;
    std::int32_t frame = table.group_ptr[g];
    for (std::int64_t row = 0; row < rows; row += tile_rows) {
      const std::int64_t count = std::min<std::int64_t>(tile_rows, rows - row);
      const std::int64_t first_token = token + row / share, last_token = token + (row + count - 1) / share;
      while (table.frame_ptr[frame + 1] <= first_token) ++frame;
      Rows tile{token,
                static_cast<std::int32_t>(row),
                static_cast<std::int32_t>(count),
                frame,
                0,
                keys.offsets[static_cast<std::size_t>(g)],
                0};
      for (std::int32_t f = frame; f < end && table.frame_ptr[f] <= last_token; ++f) {
        tile.frames = f - frame + 1;
        tile.last = std::max(tile.last, keys.limits[static_cast<std::size_t>(f)]);
      }
      tiles.push_back(tile);
    }
  }
  return tiles;
}

template <class T>
void append(std::vector<std::int32_t>& buffer, const std::vector<T>& items) {
  static_assert(sizeof(T) % sizeof(std::int32_t) == 0, "the buffer holds int32");
  const std::size_t at = buffer.size(), bytes = items.size() * sizeof(T);
  buffer.resize(at + bytes / sizeof(std::int32_t));
  if (bytes) std::memcpy(buffer.data() + at, items.data(), bytes);
}

// Sizes of schedules that are recorded once and filled anew: few of them, for many numbers. By at most a
// quarter, for what costs a thread block each; by at most a factor of 2, for what costs memory alone.
inline std::int32_t quarter_octave(std::int32_t n) {
  std::int32_t step = 1;
  while (step * 8 < n) step *= 2;
  return (n + step - 1) / step * step;
}

inline std::int32_t octave(std::int32_t n) {
  std::int32_t size = n ? 1 : 0;
  while (size < n) size *= 2;
  return size;
}

// Copies the buffer of a plan, one kind of items after the other, with room behind each kind.
class WithRoom {
 public:
  explicit WithRoom(const std::vector<std::int32_t>& plan) : from_(plan.data()) {}

  template <class T>
  void copy(std::int32_t items, std::int32_t room_for, const T& nothing) {
    constexpr std::int32_t kInts = sizeof(T) / sizeof(std::int32_t);
    buffer.insert(buffer.end(), from_, from_ + items * kInts);
    from_ += items * kInts;
    append(buffer, std::vector<T>(static_cast<std::size_t>(room_for - items), nothing));
  }

  std::vector<std::int32_t> buffer;

 private:
  const std::int32_t* from_;
};

}  // namespace ardiff
