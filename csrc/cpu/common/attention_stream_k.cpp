// SPDX-License-Identifier: Apache-2.0
// Builds the schedule of ardiff/attention_stream_k.h.
//
// Policy. Whole tiles first, longest first, each to the worker with the least to do: tiles of one group and
// kv head stand together, so workers that run side by side walk the same pages at the same time, and K and V
// come from the L2 cache. (Cutting the line of all steps into equal ranges, the plainest stream-K, starts
// every worker at another page: 132 streams of keys, more than the cache holds.) Only what does not fit into
// equal shares is cut.
#include "ardiff/attention_stream_k.h"

#include <functional>
#include <queue>
#include <utility>

#include "cpu/attention_tiles.h"

namespace ardiff {
namespace {

// In steps. Estimates: no GPU has measured them yet, and only the choice of the plan depends on them.
constexpr std::int64_t kTileCost = 1;   // load of q, first K in flight, store of o
constexpr std::int64_t kPartCost = 2;   // the same, in float, and read again
constexpr std::int64_t kMergeCost = 4;  // the second kernel

// A tile of one kv head, with its steps.
struct Unit {
  Rows rows;
  std::int32_t kv_head;
  std::int64_t steps;
};

// A piece of a unit on a worker: steps first .. last of it.
struct Piece {
  std::size_t unit;
  std::int64_t first, last;
};

struct Assignment {
  std::vector<std::vector<Piece>> workers;
  std::int64_t time = 0;
  bool fits = true;  // within the budget
};

std::vector<Unit> units_of(const std::vector<Rows>& tiles, std::int64_t kv_heads, std::int64_t boxes) {
  std::vector<Unit> units;
  for (std::size_t begin = 0; begin < tiles.size();) {
    std::size_t end = begin;
    while (end < tiles.size() && tiles[end].token == tiles[begin].token) ++end;  // a group
    for (std::int32_t head = 0; head < kv_heads; ++head) {
      for (std::size_t i = begin; i < end; ++i) {
        units.push_back({tiles[i], head, ceil_div(tiles[i].last, boxes)});
      }
    }
    begin = end;
  }
  std::stable_sort(units.begin(), units.end(),
                   [](const Unit& a, const Unit& b) { return a.steps > b.steps; });
  return units;
}

// No worker gets more than `budget`; pieces that no worker has room for are dropped, and `fits` is false.
Assignment assign(const std::vector<Unit>& units, std::size_t workers, std::int64_t budget) {
  Assignment made;
  made.workers.resize(workers);
  using Load = std::pair<std::int64_t, std::size_t>;
  std::priority_queue<Load, std::vector<Load>, std::greater<>> least;
  for (std::size_t w = 0; w < workers; ++w) least.emplace(0, w);
  std::vector<std::int64_t> loads(workers);
  std::vector<std::size_t> rest;
  for (std::size_t u = 0; u < units.size(); ++u) {
    const auto [load, w] = least.top();
    const std::int64_t after = load + units[u].steps + kTileCost;
    if (after > budget) {
      rest.push_back(u);
      continue;
    }
    least.pop();
    least.emplace(after, w);
    loads[w] = after;
    made.workers[w].push_back({u, 0, units[u].steps});
  }
  std::size_t w = 0;
  for (const std::size_t u : rest) {
    for (std::int64_t first = 0; first < units[u].steps || units[u].steps == 0;) {
      while (w < workers && budget - loads[w] <= kPartCost) ++w;
      if (w == workers) return made.fits = false, made;
      const std::int64_t count = std::min(units[u].steps - first, budget - loads[w] - kPartCost);
      made.workers[w].push_back({u, first, first + count});
      loads[w] += count + kPartCost;
      first += count;
      if (units[u].steps == 0) break;
    }
  }
  for (const std::int64_t load : loads) made.time = std::max(made.time, load);
  return made;
}

Assignment choose(const std::vector<Unit>& units, std::size_t workers) {
  std::int64_t total = 0, unlimited = 0;
  for (const Unit& unit : units) total += unit.steps + kTileCost;
  for (const Unit& unit : units) unlimited += unit.steps + kTileCost + kPartCost;
  Assignment whole = assign(units, workers, unlimited);
  for (std::int64_t budget = ceil_div(total, static_cast<std::int64_t>(workers));
       budget + kMergeCost < whole.time; budget += 1 + budget / 64) {
    Assignment cut = assign(units, workers, budget);
    if (cut.fits) return cut;
  }
  return whole;
}

}  // namespace

StreamKPlan plan_stream_k(const HostFrameTable& table, std::int64_t heads, std::int64_t kv_heads,
                          int multiprocessors, std::int32_t block_rows) {
  const std::int64_t boxes = step_boxes(block_rows);
  const KeyBlocks keys = key_blocks(table, block_rows);
  const std::vector<Unit> units =
      units_of(cut_rows(table, keys, heads / kv_heads, kStreamRows), kv_heads, boxes);
  const Assignment made = choose(units, static_cast<std::size_t>(multiprocessors));

  // Parts are numbered unit by unit, in the order of their keys.
  std::vector<std::int32_t> pieces(units.size()), parts(units.size(), -1);
  for (const auto& worker : made.workers) {
    for (const Piece& piece : worker) ++pieces[piece.unit];
  }
  std::vector<StreamKMerge> merges;
  std::int32_t part = 0;
  for (std::size_t u = 0; u < units.size(); ++u) {
    if (pieces[u] < 2) continue;
    const Rows& rows = units[u].rows;
    merges.push_back({{rows.token, rows.row, rows.rows, part, pieces[u]}, units[u].kv_head});
    parts[u] = part;
    part += pieces[u];
  }
  // Pieces of a unit lie on workers of rising numbers, so a walk over the workers meets them in key order.
  std::vector<std::int32_t> begins{0};
  std::vector<StreamKItem> items;
  for (const auto& worker : made.workers) {
    for (const Piece& piece : worker) {
      const Rows& rows = units[piece.unit].rows;
      const auto edge = [&](std::int64_t step) {
        return static_cast<std::int32_t>(std::min<std::int64_t>(rows.last, step * boxes));
      };
      items.push_back(
          {{rows.token, rows.row, rows.rows, rows.frame, rows.frames, rows.block, edge(piece.first),
            edge(piece.last), pieces[piece.unit] < 2 ? -1 : parts[piece.unit]++},
           units[piece.unit].kv_head});
    }
    begins.push_back(static_cast<std::int32_t>(items.size()));
  }

  StreamKPlan plan;
  plan.sizes = {static_cast<std::int32_t>(items.size()),       static_cast<std::int32_t>(merges.size()),
                static_cast<std::int32_t>(keys.blocks.size()), static_cast<std::int32_t>(keys.limits.size()),
                static_cast<std::int32_t>(multiprocessors),    part};
  append(plan.buffer, begins);
  append(plan.buffer, items);
  append(plan.buffer, merges);
  append(plan.buffer, keys.blocks);
  append(plan.buffer, keys.limits);
  return plan;
}

StreamKPlan roomy(const StreamKPlan& plan) {
  const StreamKSizes& s = plan.sizes;
  const StreamKSizes sizes{octave(s.items), quarter_octave(s.merges), octave(s.blocks), s.frames,
                           s.workers,       octave(s.parts)};
  WithRoom room(plan.buffer);
  room.copy(s.workers + 1, sizes.workers + 1, std::int32_t{});
  room.copy(s.items, sizes.items, StreamKItem{});
  room.copy(s.merges, sizes.merges, StreamKMerge{});
  room.copy(s.blocks, sizes.blocks, KeyBlock{});
  room.copy(s.frames, sizes.frames, std::int32_t{});
  return {sizes, std::move(room.buffer)};
}

std::int64_t partial_floats(const StreamKSizes& sizes, std::int64_t dim) {
  return std::int64_t{sizes.parts} * kStreamRows * (dim + 1);
}

StreamKWork stream_k_work(const StreamKSizes& sizes, const std::int32_t* buffer, float* partials,
                          std::int32_t* error, std::int64_t dim, std::int32_t block_rows) {
  StreamKWork work{};
  work.begins = buffer;
  work.items = reinterpret_cast<const StreamKItem*>(work.begins + sizes.workers + 1);
  work.merges = reinterpret_cast<const StreamKMerge*>(work.items + sizes.items);
  work.blocks = reinterpret_cast<const KeyBlock*>(work.merges + sizes.merges);
  work.limits = reinterpret_cast<const std::int32_t*>(work.blocks + sizes.blocks);
  work.partial_o = partials;
  work.partial_lse = partials + std::int64_t{sizes.parts} * kStreamRows * dim;
  work.error = error;
  work.num_workers = sizes.workers;
  work.num_merges = sizes.merges;
  work.block_rows = block_rows;
  return work;
}

}  // namespace ardiff
