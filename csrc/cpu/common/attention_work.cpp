// SPDX-License-Identifier: Apache-2.0
// Builds the schedule of ardiff/attention_work.h.
//
// Policy. A GPU runs `slots` thread blocks at a time (two per multiprocessor). Tiles are started longest
// first, so their run time is bounded by waves: the longest tile of each round of `slots`. Few tiles leave
// slots idle (13 tiles x 12 heads for a frame of 1560 tokens on 264 slots); cutting tiles into parts fills
// them, at the price of a start per part, partial results in memory and a merge. 64-row tiles are more
// numerous but use the tensor cores less well than 128-row tiles. All combinations are costed, the cheapest
// is taken.
#include "ardiff/attention_work.h"

#include <algorithm>

#include "cpu/attention_tiles.h"

namespace ardiff {
namespace {

// In sixteenths of the time of one key block in a 128-row tile. Estimates from instruction counts at D = 128:
// no GPU has measured them yet, and only the choice of the plan depends on them.
constexpr std::int64_t kBlockCost128 = 16;
constexpr std::int64_t kBlockCost64 =
    9;                                  // half the work, but each fragment of K and V is used once, not twice
constexpr std::int64_t kPartCost = 96;  // start, load of q, first K in flight
constexpr std::int64_t kPartialCost = 64;  // writing a partial result and reading it again
constexpr std::int64_t kMergeCost = 160;   // the second kernel
constexpr int kSlotsPerMultiprocessor = 2;
constexpr std::int64_t kMostParts = 32;

// Into how many parts a tile is cut when no part shall have more than `steps` steps.
std::int64_t parts_of(const Rows& tile, std::int64_t steps) {
  return std::max<std::int64_t>(1, ceil_div(ceil_div(tile.last, kStepBlocks), steps));
}

// Time of all tiles, by rounds. `tiles` are sorted longest first; parts then are too, closely enough.
std::int64_t cost(const std::vector<Rows>& tiles, std::int64_t steps, std::int64_t block_cost,
                  std::int64_t kv_heads, std::int64_t slots) {
  std::int64_t time = 0, started = 0, next_round = 0;
  bool cut = false;
  for (const Rows& tile : tiles) {
    const std::int64_t parts = parts_of(tile, steps);
    cut |= parts > 1;
    started += parts * kv_heads;
    for (; next_round < started; next_round += slots) {
      time += ceil_div(tile.last, parts) * block_cost + kPartCost + (parts > 1 ? kPartialCost : 0);
    }
  }
  return time + (cut ? kMergeCost : 0);
}

struct Choice {
  std::vector<Rows> tiles;
  std::int32_t tile_rows;
  std::int64_t steps, time;
};

Choice choose(const HostFrameTable& table, const KeyBlocks& keys, std::int64_t share, std::int64_t kv_heads,
              std::int64_t slots) {
  Choice best{{}, 0, 1, 0};
  for (const std::int32_t tile_rows : {128, 64}) {
    std::vector<Rows> tiles = cut_rows(table, keys, share, tile_rows);
    std::stable_sort(tiles.begin(), tiles.end(),
                     [](const Rows& a, const Rows& b) { return a.last > b.last; });
    const std::int64_t longest = tiles.empty() ? 1 : std::max<std::int64_t>(1, tiles.front().last);
    const std::int64_t most_steps = ceil_div(longest, kStepBlocks);
    const std::int64_t block_cost = tile_rows == 128 ? kBlockCost128 : kBlockCost64;
    std::int64_t best_steps = 0, best_time = 0, before = 0;
    for (std::int64_t parts = 1; parts <= std::min(kMostParts, most_steps); ++parts) {
      const std::int64_t steps = ceil_div(most_steps, parts);
      if (steps == before) continue;
      before = steps;
      const std::int64_t time = cost(tiles, steps, block_cost, kv_heads, slots);
      if (best_steps == 0 || time < best_time) best_steps = steps, best_time = time;
    }
    if (best.tile_rows == 0 || best_time < best.time) {
      best = {std::move(tiles), tile_rows, best_steps, best_time};
    }
  }
  return best;
}

}  // namespace

AttentionPlan plan_attention(const HostFrameTable& table, std::int64_t heads, std::int64_t kv_heads,
                             int multiprocessors) {
  const KeyBlocks keys = key_blocks(table, kKeyBlock);
  const Choice choice = choose(table, keys, heads / kv_heads, kv_heads,
                               std::int64_t{multiprocessors} * kSlotsPerMultiprocessor);
  std::vector<AttentionTile> tiles;
  std::vector<AttentionMerge> merges;
  std::int32_t part = 0;
  for (const Rows& rows : choice.tiles) {
    const std::int64_t parts = parts_of(rows, choice.steps), steps = ceil_div(rows.last, kStepBlocks);
    for (std::int64_t i = 0; i < parts; ++i) {
      const auto edge = [&](std::int64_t at) {
        return static_cast<std::int32_t>(std::min<std::int64_t>(rows.last, steps * at / parts * kStepBlocks));
      };
      tiles.push_back({rows.token, rows.row, rows.rows, rows.frame, rows.frames, rows.block, edge(i),
                       edge(i + 1), parts > 1 ? part + static_cast<std::int32_t>(i) : -1});
    }
    if (parts > 1) {
      merges.push_back({rows.token, rows.row, rows.rows, part, static_cast<std::int32_t>(parts)});
      part += static_cast<std::int32_t>(parts);
    }
  }
  AttentionPlan plan;
  plan.sizes = {static_cast<std::int32_t>(tiles.size()),
                static_cast<std::int32_t>(merges.size()),
                static_cast<std::int32_t>(keys.blocks.size()),
                static_cast<std::int32_t>(keys.limits.size()),
                choice.tile_rows,
                part};
  append(plan.buffer, tiles);
  append(plan.buffer, merges);
  append(plan.buffer, keys.blocks);
  append(plan.buffer, keys.limits);
  return plan;
}

AttentionPlan roomy(const AttentionPlan& plan) {
  const AttentionPlanSizes& s = plan.sizes;
  const AttentionPlanSizes sizes{
      quarter_octave(s.tiles), quarter_octave(s.merges), octave(s.blocks), s.frames, s.tile_rows,
      octave(s.parts)};
  WithRoom room(plan.buffer);
  room.copy(s.tiles, sizes.tiles, AttentionTile{0, 0, 0, 0, 0, 0, 0, 0, -1});
  room.copy(s.merges, sizes.merges, AttentionMerge{});
  room.copy(s.blocks, sizes.blocks, KeyBlock{});
  room.copy(s.frames, sizes.frames, std::int32_t{});
  return {sizes, std::move(room.buffer)};
}

std::int64_t partial_floats(const AttentionPlanSizes& sizes, std::int64_t kv_heads, std::int64_t dim) {
  return std::int64_t{sizes.parts} * kv_heads * sizes.tile_rows * (dim + 1);
}

AttentionWork attention_work(const AttentionPlanSizes& sizes, const std::int32_t* buffer, float* partials,
                             std::int32_t* error, std::int64_t kv_heads, std::int64_t dim) {
  AttentionWork work{};
  work.tiles = reinterpret_cast<const AttentionTile*>(buffer);
  work.merges = reinterpret_cast<const AttentionMerge*>(work.tiles + sizes.tiles);
  work.blocks = reinterpret_cast<const KeyBlock*>(work.merges + sizes.merges);
  work.limits = reinterpret_cast<const std::int32_t*>(work.blocks + sizes.blocks);
  work.partial_o = partials;
  work.partial_lse = partials + std::int64_t{sizes.parts} * kv_heads * sizes.tile_rows * dim;
  work.error = error;
  work.num_tiles = sizes.tiles;
  work.num_merges = sizes.merges;
  work.tile_rows = sizes.tile_rows;
  return work;
}

}  // namespace ardiff
