// SPDX-License-Identifier: Apache-2.0
// The backward pass of ardiff_engine/ops/norm_rope_pages.py; forward is norm_rope_write.
#include <pybind11/stl.h>

#include <array>

#include "ardiff/norm_rope_write.h"
#include "binding.h"
#include "cpu/dispatch.h"

ARDIFF_DISPATCH(void, norm_rope_write_backward, const ardiff::NormRopeWriteBackwardParams& p)

namespace {

// tensors: qkv, dk pages, dv pages, slots, positions, dq, q weight, k weight, frequencies, angles (these
// four: 0 for none), dqkv, daffine, partial. sizes: tokens, heads, kv heads, dim, axes, page rows; page,
// head, row stride.
ardiff::NormRopeWriteBackwardParams norm_rope_backward_params(const std::array<std::uintptr_t, 13>& tensors,
                                                              const std::array<std::int64_t, 9>& sizes,
                                                              int norm, float eps) {
  using ardiff::bindings::pointer;
  ardiff::NormRopeWriteBackwardParams b{};
  ardiff::NormRopeWriteParams& p = b.forward;
  p.qkv = pointer<const float>(tensors[0]);
  p.k_pages = pointer<float>(tensors[1]);
  p.v_pages = pointer<float>(tensors[2]);
  p.slots = pointer<const std::int64_t>(tensors[3]);
  p.positions = pointer<const std::int64_t>(tensors[4]);
  b.dq = pointer<const float>(tensors[5]);
  p.q_weight = pointer<const float>(tensors[6]);
  p.k_weight = pointer<const float>(tensors[7]);
  p.frequencies = pointer<const double>(tensors[8]);
  p.angles = pointer<float>(tensors[9]);
  b.dqkv = pointer<float>(tensors[10]);
  b.daffine = pointer<float>(tensors[11]);
  b.partial = pointer<float>(tensors[12]);
  p.tokens = sizes[0];
  p.heads = sizes[1];
  p.kv_heads = sizes[2];
  p.dim = sizes[3];
  p.axes = sizes[4];
  p.page_rows = sizes[5];
  p.page_stride = sizes[6];
  p.head_stride = sizes[7];
  p.row_stride = sizes[8];
  p.norm = static_cast<ardiff::HeadNorm>(norm);
  p.eps = eps;
  return b;
}

}  // namespace

ARDIFF_BINDING(norm_rope_pages) {
  ardiff::bindings::def(m, "norm_rope_write_backward", &norm_rope_backward_params,
                        &ardiff::cpu::norm_rope_write_backward);
  m.attr("NORM_ROPE_CHUNK") = ardiff::kBackwardChunk;
}
