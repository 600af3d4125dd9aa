// SPDX-License-Identifier: Apache-2.0
#include "ardiff/norm_rope_write.h"

#include "binding.h"
#include "cuda.h"
#include "shared_kernels.h"

ARDIFF_CHECKED_LAUNCHER(norm_rope_write, ardiff::NormRopeWriteParamsOf)

using ardiff::bindings::pointer;

namespace {

template <class T>
ardiff::NormRopeWriteParamsOf<T> norm_rope_write_params(
    std::uintptr_t qkv, std::uintptr_t k_pages, std::uintptr_t v_pages, std::uintptr_t slots,
    std::uintptr_t positions, std::uintptr_t q, std::uintptr_t q_weight, std::uintptr_t q_bias,
    std::uintptr_t k_weight, std::uintptr_t k_bias, std::uintptr_t qkv_bias, std::uintptr_t frequencies,
    std::uintptr_t angles, std::int64_t tokens, std::int64_t heads, std::int64_t kv_heads, std::int64_t dim,
    std::int64_t axes, std::int64_t pages, std::int64_t page_rows, std::int64_t page_stride,
    std::int64_t head_stride, std::int64_t row_stride, int norm, float eps) {
  ardiff::NormRopeWriteParamsOf<T> p{};
  p.qkv = pointer<const T>(qkv);
  p.k_pages = pointer<T>(k_pages);
  p.v_pages = pointer<T>(v_pages);
  p.slots = pointer<const std::int64_t>(slots);
  p.positions = pointer<const std::int64_t>(positions);
  p.q = pointer<T>(q);
  p.q_weight = pointer<const T>(q_weight);
  p.q_bias = pointer<const T>(q_bias);
  p.k_weight = pointer<const T>(k_weight);
  p.k_bias = pointer<const T>(k_bias);
  p.qkv_bias = pointer<const T>(qkv_bias);
  p.frequencies = pointer<const double>(frequencies);
  p.angles = pointer<float>(angles);
  p.tokens = tokens;
  p.heads = heads;
  p.kv_heads = kv_heads;
  p.dim = dim;
  p.axes = axes;
  p.pages = pages;
  p.page_rows = page_rows;
  p.page_stride = page_stride;
  p.head_stride = head_stride;
  p.row_stride = row_stride;
  p.norm = static_cast<ardiff::HeadNorm>(norm);
  p.eps = eps;
  return p;
}

// Returns the first token whose slot is out of range, before anything is written; -1 when all went well.
std::int64_t checked_norm_rope_write(const ardiff::NormRopeWriteParams& p) {
  for (std::int64_t t = 0; t < p.tokens; ++t) {
    if (p.slots[t] < -1 || p.slots[t] >= p.pages * p.page_rows) return t;
  }
  ardiff::cpu::norm_rope_write(p);
  return -1;
}

}  // namespace

ARDIFF_BINDING(norm_rope_write) {
  ardiff::bindings::def(m, "norm_rope_write", &norm_rope_write_params<float>, &checked_norm_rope_write);
  ARDIFF_DEF_CUDA(m, norm_rope_write, norm_rope_write_params);
}
