// SPDX-License-Identifier: Apache-2.0
// The schedule of frame attention on a GPU: who computes what, decided on the host, once per table.
//
// A page entry with n valid rows is ceil(n / 16) *key blocks*: 16 keys are what one mma.sync instruction
// takes. A group's key blocks are numbered in list order, so the prefix of entries that a query frame sees is
// a prefix of key blocks, limits[frame]. A *tile* is up to tile_rows query rows of one group and one kv head
// (rows are (token, query head of that kv head), token-major) together with a range of key blocks, and is the
// work of one thread block. Where there are too few tiles for the GPU, the key blocks of a tile are cut into
// *parts*; every part leaves its normalised output and its lse in memory, and a *merge* adds the parts up, in
// key order.
//
// So results do not depend on timing: which part covers what, and in which order parts are added, is fixed
// here.
#pragma once

#include "integers.h"

namespace ardiff {

constexpr int kKeyBlock = 16;   // keys of a key block
constexpr int kStepBlocks = 4;  // key blocks that a thread block computes between two softmax updates

struct KeyBlock {
  std::int32_t entry;  // of the table; pages[entry], valid[entry] and bias[entry] are read on the device
  std::int32_t row;    // the first of the block's rows in that page
};

// Query row r of the tile is token `token` + (row + r) / share, where share = heads / kv_heads, and query
// head kv_head * share + (row + r) % share.
struct AttentionTile {
  std::int32_t token;          // first token of the group
  std::int32_t row, rows;      // query rows of (group, kv head)
  std::int32_t frame, frames;  // the query frames that these rows belong to
  std::int32_t block;          // where the group's key blocks begin
  std::int32_t first, last;    // key blocks of this part, counted in the group
  std::int32_t part;           // where the partial result goes; -1: this is the whole result
};

struct AttentionMerge {
  std::int32_t token, row, rows;  // as in AttentionTile
  std::int32_t part, parts;       // adds parts part .. part + parts, in this order
};

// Device pointers. Kernels run over tiles x kv heads.
struct AttentionWork {
  const AttentionTile* tiles;
  const AttentionMerge* merges;
  const KeyBlock* blocks;
  const std::int32_t* limits;  // [frames]: key blocks of its group that a query frame sees
  float* partial_o;            // [parts, kv_heads, tile_rows, D]
  float* partial_lse;          // [parts, kv_heads, tile_rows], natural log
  std::int32_t* error;  // device_error.h: kBadView when a page id is out of range; the page is not seen
  std::int32_t num_tiles, num_merges;
  std::int32_t tile_rows;  // 64 or 128
};

}  // namespace ardiff

#ifndef __CUDACC_RTC__

#include <vector>

namespace ardiff {

// The offsets of a FrameTable (ardiff_engine/ops/frame_table.py), in host memory.
struct HostFrameTable {
  const std::int32_t *frame_ptr, *group_ptr, *page_ptr, *valid, *seen;
  std::int64_t groups;
};

// What the plan's one int32 buffer holds, in this order: tiles, merges, blocks, limits.
struct AttentionPlanSizes {
  std::int32_t tiles, merges, blocks, frames;
  std::int32_t tile_rows, parts;
};

struct AttentionPlan {
  AttentionPlanSizes sizes;
  std::vector<std::int32_t> buffer;
};

// Chooses tile rows and parts for a GPU of so many multiprocessors.
AttentionPlan plan_attention(const HostFrameTable& table, std::int64_t heads, std::int64_t kv_heads,
                             int multiprocessors);

// The same plan with room for larger ones, for a launch that is recorded once and repeated with other tables
// (a CUDA graph): sizes are rounded up, so that similar tables have equal ones. The tiles and merges that are
// added have no rows, and their thread blocks end at once; blocks and parts that are added are in no tile.
AttentionPlan roomy(const AttentionPlan& plan);

// Floats of workspace that the parts of a plan need.
std::int64_t partial_floats(const AttentionPlanSizes& sizes, std::int64_t kv_heads, std::int64_t dim);

// A plan whose buffer was copied to `buffer`, with its workspace (null without parts) and its error flag.
AttentionWork attention_work(const AttentionPlanSizes& sizes, const std::int32_t* buffer, float* partials,
                             std::int32_t* error, std::int64_t kv_heads, std::int64_t dim);

}  // namespace ardiff

#endif
