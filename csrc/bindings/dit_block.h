// SPDX-License-Identifier: Apache-2.0
// What a DiT block is made of, and the tokens that it is run on, as plain numbers. Python fills these structs
// by name (ardiff_engine/models/dit); tensors are addresses, 0 for none.
//
//   u = norm(h);  q, k, v = qkv(u);  h += gate out(attention(rope(head_norm(q)), pages))      self-attention
//   u = norm(h);  q = q(u);          h += gate out(attention(head_norm(q), pages of the condition))    cross
//   u = norm(h);                     h += gate down(activation(up(u)))                                   MLP
//
// norm(h) is n (1 + scale) + shift: with rows of the modulation table by frame, or with one row for all
// tokens. Where a block replaces its residual, h becomes n before the branch is added.
#pragma once

#include <cstdint>
#include <vector>

#include "ardiff/linear.h"
#include "ardiff/modulate.h"
#include "ardiff/norm_rope_write.h"

namespace ardiff::bindings {

using Address = std::uintptr_t;

struct LinearSpec {
  Address weights = 0, bias = 0;
  std::int64_t inputs = 0, outputs = 0, panel_stride = 0, input_stride = 0;
};

// shift, scale, gate: which of the values of a modulation row, -1: none. A norm without them takes the
// vectors fixed_shift and fixed_scale [width].
struct BranchSpec {
  RowNorm norm = RowNorm::layer;
  float eps = 1e-6f;
  int shift = -1, scale = -1, gate = -1;
  Address fixed_shift = 0, fixed_scale = 0;
};

struct HeadsSpec {
  std::int64_t heads = 1, kv_heads = 1, dim = 1;
  HeadNorm norm = HeadNorm::none;
  float eps = 1e-5f;
  Address q_weight = 0, q_bias = 0, k_weight = 0, k_bias = 0;
};

// projection: [q | k | v] of self-attention, q of cross-attention.
struct AttentionSpec {
  BranchSpec branch;
  HeadsSpec heads;
  LinearSpec projection, out;
};

struct MlpSpec {
  BranchSpec branch;
  LinearSpec up, down;
  LinearEpilogue activation = LinearEpilogue::gelu;
};

struct BlockSpec {
  AttentionSpec self_attention;
  bool has_cross_attention = false;
  AttentionSpec cross_attention;
  MlpSpec mlp;
  bool replaces_residual = false;
};

// Pages of the first block, [pages, kv_heads, page_rows, dim]; those of the next one are layer_stride floats
// further on. Strides are the same for k and v, rows are dense. The table says who sees which of them.
struct PagesSpec {
  Address k = 0, v = 0;
  std::int64_t layer_stride = 0, pages = 0, page_rows = 0, page_stride = 0, head_stride = 0, row_stride = 0;
  Address frame_ptr = 0, group_ptr = 0, page_ptr = 0, page_ids = 0, valid = 0, seen = 0, bias = 0;
  std::int64_t groups = 0;
  std::int64_t first_head = 0, heads = 0;  // the kv heads that see by this table; heads 0: all of them
};

// further: tables of other kv heads than those that see by `pages`, over the same pages.
// h [tokens, width], in place. modulation: [rows, values, width] of the first block, those of the next one
// are modulation_stride floats further on. wanted: uint8 [tokens], whose output of the last block is; 0: all.
struct PassSpec {
  Address h = 0, modulation = 0, frame_ids = 0, slots = 0, positions = 0, frequencies = 0, wanted = 0;
  std::int64_t tokens = 0, width = 0, rows = 0, values = 6, modulation_stride = 0, axes = 1;
  PagesSpec pages, condition;
  std::vector<PagesSpec> further;
  Address workspace = 0;
  std::int64_t workspace_floats = 0;
};

}  // namespace ardiff::bindings
