// SPDX-License-Identifier: Apache-2.0
// The parameters of frame attention, from what Python passes.
#pragma once

#include <pybind11/stl.h>

#include <array>

#include "ardiff/frame_attention.h"
#include "binding.h"

namespace ardiff::bindings {

using Integers8 = std::array<std::int64_t, 8>;

// tensors: q, k, v, o, lse. table: frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias (0: none), number
// of groups. sizes: T, P, H, Hkv, D, R. strides: q token, head; k page, head, row; v page, head, row.
inline FrameAttentionParams params(const std::array<std::int64_t, 5>& tensors, const Integers8& table,
                                   const std::array<std::int64_t, 6>& sizes, const Integers8& strides,
                                   float scale) {
  const auto integers = [&](int i) {
    return pointer<const std::int32_t>(static_cast<std::uintptr_t>(table[i]));
  };
  const auto floats = [&](int i) { return pointer<float>(static_cast<std::uintptr_t>(tensors[i])); };
  FrameAttentionParams p{};
  p.q = floats(0);
  p.k = floats(1);
  p.v = floats(2);
  p.o = floats(3);
  p.lse = floats(4);
  p.frame_ptr = integers(0);
  p.group_ptr = integers(1);
  p.page_ptr = integers(2);
  p.pages = integers(3);
  p.valid = integers(4);
  p.seen = integers(5);
  p.bias = pointer<const float>(static_cast<std::uintptr_t>(table[6]));
  p.groups = table[7];
  p.num_pages = sizes[1];
  p.heads = sizes[2];
  p.kv_heads = sizes[3];
  p.dim = sizes[4];
  p.page_rows = sizes[5];
  p.q_token = strides[0];
  p.q_head = strides[1];
  p.k_page = strides[2];
  p.k_head = strides[3];
  p.k_row = strides[4];
  p.v_page = strides[5];
  p.v_head = strides[6];
  p.v_row = strides[7];
  p.scale = scale;
  return p;
}

}  // namespace ardiff::bindings
