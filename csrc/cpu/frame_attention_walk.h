// SPDX-License-Identifier: Apache-2.0
// What the passes of frame attention iterate over: tiles of query rows, and the page list in blocks of rows.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ardiff/frame_attention.h"
#include "frame_attention_tile.h"
#include "scratch.h"

namespace ardiff::cpu::ARDIFF_ISA {

// `rows` rows as few tiles of up to kMaxVectors vectors, as even as whole vectors allow: 64 rows are 2 + 2
// vectors of 16 and not 3 + 1, because a tile of one vector runs at little more than half the speed.
class EvenTiles {
 public:
  explicit EvenTiles(std::int64_t rows)
      : vectors_((rows + Vec::width - 1) / Vec::width), count_((vectors_ + kMaxVectors - 1) / kMaxVectors) {}
  std::int64_t count() const { return count_; }
  std::int64_t first_row(std::int64_t tile) const {
    const std::int64_t more = vectors_ % count_;
    return (vectors_ / count_ * tile + (tile < more ? tile : more)) * Vec::width;
  }
  int vectors(std::int64_t tile) const {
    return static_cast<int>(vectors_ / count_ + (tile < vectors_ % count_));
  }

 private:
  std::int64_t vectors_, count_;
};

// body(std::integral_constant<int, V>) for the V that a tile needs
template <class Body>
void with_vectors(int vectors, const Body& body) {
  if (vectors == 3) return body(std::integral_constant<int, 3>());
  if (vectors == 2) return body(std::integral_constant<int, 2>());
  body(std::integral_constant<int, 1>());
}

// Tiles of the query rows of a group and one kv head.
inline EvenTiles query_tiles(const FrameAttentionParams& p, std::int64_t group) {
  const std::int64_t tokens = p.frame_ptr[p.group_ptr[group + 1]] - p.frame_ptr[p.group_ptr[group]];
  return EvenTiles(tokens * (p.heads / p.kv_heads));
}

struct QueryItem {
  std::int64_t group, kv_head, first_row;
  int vectors;
};

// Work items of the query passes: (group, kv head, tile of query rows), tiles of a head next to each other.
class QueryItems {
 public:
  explicit QueryItems(const FrameAttentionParams& p) : p_(p) {
    for (std::int64_t g = 0; g < p.groups; ++g) count_ += tiles(g).count() * p.kv_heads;
  }
  std::int64_t count() const { return count_; }
  QueryItem find(std::int64_t item) const {
    std::int64_t g = 0;
    while (item >= tiles(g).count() * p_.kv_heads) item -= tiles(g++).count() * p_.kv_heads;
    const EvenTiles even = tiles(g);
    const std::int64_t tile = item % even.count();
    return {g, item / even.count(), even.first_row(tile), even.vectors(tile)};
  }

 private:
  EvenTiles tiles(std::int64_t g) const { return query_tiles(p_, g); }
  const FrameAttentionParams& p_;
  std::int64_t count_ = 0;
};

// Up to M query rows of one group and one kv head: rows are (token, query head of that kv head), token-major.
// Lanes without a row repeat the first one; what they compute is thrown away.
template <int M>
struct QueryTile {
  int lanes;
  std::int64_t index[M];  // token * row_heads + head
  std::int64_t q_offset[M];
  alignas(64) float limit[M];  // entries that the lane sees
  int fewest = 0, most = 0;    // over the lanes

  QueryTile(const FrameAttentionParams& p, const QueryItem& item) {
    const std::int64_t share = p.heads / p.kv_heads, row = p.row_heads ? p.row_heads : p.heads;
    std::int64_t frame = p.group_ptr[item.group];
    const std::int64_t token0 = p.frame_ptr[frame], token_end = p.frame_ptr[p.group_ptr[item.group + 1]];
    const std::int64_t rows = (token_end - token0) * share - item.first_row;
    lanes = static_cast<int>(rows < M ? rows : M);
    for (int lane = 0; lane < lanes; ++lane) {
      const std::int64_t token = token0 + (item.first_row + lane) / share;
      const std::int64_t head = item.kv_head * share + (item.first_row + lane) % share;
      while (token >= p.frame_ptr[frame + 1]) ++frame;
      index[lane] = token * row + head;
      q_offset[lane] = token * p.q_token + head * p.q_head;
      limit[lane] = static_cast<float>(p.seen[frame]);
      if (lane == 0 || p.seen[frame] < fewest) fewest = p.seen[frame];
      if (lane == 0 || p.seen[frame] > most) most = p.seen[frame];
    }
    for (int lane = lanes; lane < M; ++lane) {
      index[lane] = index[0];
      q_offset[lane] = q_offset[0];
      limit[lane] = limit[0];
    }
  }
};

// Walks a group's page list in blocks of up to `block` rows, at most kBlock. Blocks depend on the list alone,
// not on who sees how much.
class PageWalk {
 public:
  PageWalk(const FrameAttentionParams& p, std::int64_t group, std::int64_t kv_head, int entries,
           int block = kBlock)
      : p_(p), first_(p.page_ptr[group]), kv_head_(kv_head), entries_(entries), block_(block) {}

  void skip(std::int64_t rows) {
    for (; entry_ < entries_ && rows >= p_.valid[first_ + entry_]; ++entry_)
      rows -= p_.valid[first_ + entry_];
    row_ = static_cast<int>(rows);
  }

  // Fills `runs` (room for a block) and returns their number, 0 at the end. `rows`: rows in the block;
  // `shared`: runs among the first `fewest` entries.
  int next(Run* runs, int fewest, int* rows, int* shared) {
    int count = 0;
    *rows = *shared = 0;
    while (entry_ < entries_ && *rows < block_) {
      const std::int64_t e = first_ + entry_;
      const int left = p_.valid[e] - row_, room = block_ - *rows, take = left < room ? left : room;
      if (take > 0) {
        const std::int64_t page = p_.pages[e];
        runs[count++] = {p_.k + page * p_.k_page + kv_head_ * p_.k_head + row_ * p_.k_row,
                         p_.v + page * p_.v_page + kv_head_ * p_.v_head + row_ * p_.v_row,
                         take,
                         *rows,
                         entry_,
                         p_.bias ? p_.bias[e] * kLog2E : 0.0f,
                         ((page * p_.kv_heads + kv_head_) * p_.page_rows + row_) * p_.dim};
        *rows += take;
        row_ += take;
        if (entry_ < fewest) *shared = count;
      }
      if (row_ >= p_.valid[e]) {
        ++entry_;
        row_ = 0;
      }
    }
    return count;
  }

 private:
  const FrameAttentionParams& p_;
  std::int64_t first_, kv_head_;
  int entries_, block_, entry_ = 0, row_ = 0;
};

}  // namespace ardiff::cpu::ARDIFF_ISA
