// SPDX-License-Identifier: Apache-2.0
// The schedule of frame attention on Hopper: a persistent kernel, one thread block ("worker") per
// multiprocessor, with stream-K over pages.
//
// A *box* is block_rows rows of one page: what one bulk tensor copy brings, a whole page where its rows allow
// (112, 128, 64, 32, 16). Boxes are numbered per group in list order, as the key blocks of attention_work.h
// are, and everything there about limits, tiles, parts and merges holds with boxes for key blocks. A *step*
// is the 112 or 128 keys that a worker computes between two softmax updates: 128 / block_rows boxes, or one
// of 112.
//
// A worker takes whole tiles while its share of all steps lasts; what is left over is cut into parts that
// fill the shares up. So every multiprocessor gets the same number of steps, and few results are partial: at
// most about two per worker. Who computes what, and the order in which parts are added, is fixed here: no
// counters, no atomics, the same bits every time.
#pragma once

#include "attention_work.h"
#include "hd.h"

namespace ardiff {

constexpr int kStreamRows = 128;  // query rows of a tile

// Boxes of a step; block_rows is 112 or a divisor of 128.
ARDIFF_HD inline int step_boxes(int block_rows) { return block_rows == 112 ? 1 : 128 / block_rows; }

struct StreamKItem {
  AttentionTile tile;  // first, last, block: in boxes
  std::int32_t kv_head;
};

struct StreamKMerge {
  AttentionMerge merge;
  std::int32_t kv_head;
};

// Device pointers.
struct StreamKWork {
  const std::int32_t*
      begins;  // [workers + 1]: worker w takes items begins[w] .. begins[w + 1], in this order
  const StreamKItem* items;
  const StreamKMerge* merges;
  const KeyBlock* blocks;      // boxes
  const std::int32_t* limits;  // [frames]: boxes of its group that a query frame sees
  float* partial_o;            // [parts, kStreamRows, D]
  float* partial_lse;          // [parts, kStreamRows], natural log
  std::int32_t* error;         // as in AttentionWork
  std::int32_t num_workers, num_merges, block_rows;
};

}  // namespace ardiff

#ifndef __CUDACC_RTC__

namespace ardiff {

// What the plan's one int32 buffer holds, in this order: begins (workers + 1), items, merges, blocks, limits.
struct StreamKSizes {
  std::int32_t items, merges, blocks, frames, workers, parts;
};

struct StreamKPlan {
  StreamKSizes sizes;
  std::vector<std::int32_t> buffer;
};

StreamKPlan plan_stream_k(const HostFrameTable& table, std::int64_t heads, std::int64_t kv_heads,
                          int multiprocessors, std::int32_t block_rows);

// The same plan with room for larger ones, as `roomy` of attention_work.h: merges that are added have no
// rows, and no worker takes the items that are added.
StreamKPlan roomy(const StreamKPlan& plan);

// Floats of workspace that the parts of a plan need.
std::int64_t partial_floats(const StreamKSizes& sizes, std::int64_t dim);

// A plan whose buffer was copied to `buffer`, with its workspace (null without parts) and its error flag.
StreamKWork stream_k_work(const StreamKSizes& sizes, const std::int32_t* buffer, float* partials,
                          std::int32_t* error, std::int64_t dim, std::int32_t block_rows);

}  // namespace ardiff

#endif
