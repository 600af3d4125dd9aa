// SPDX-License-Identifier: Apache-2.0
#include "ardiff/pages.h"

#include "binding.h"
#include "cpu/dispatch.h"
#include "cuda.h"

ARDIFF_DISPATCH(void, copy_pages, const ardiff::CopyPagesParams& p)
ARDIFF_DISPATCH(void, rotate_pages, const ardiff::RotatePagesParams& p)
ARDIFF_CHECKED_LAUNCHER(rotate_pages, ardiff::RotatePagesParamsOf)
ARDIFF_ONE_LAUNCHER(copy_pages, const CopyPagesParamsOf<std::uint8_t>&, std::int32_t*)

using ardiff::bindings::pointer;

namespace {

template <class T>
ardiff::CopyPagesParamsOf<T> copy_params(std::uintptr_t k_pages, std::uintptr_t v_pages, std::uintptr_t src,
                                         std::uintptr_t dst, std::int64_t count, std::int64_t layers,
                                         std::int64_t pool_pages, std::int64_t page_elements,
                                         std::int64_t layer_stride, std::int64_t page_stride) {
  return {pointer<T>(k_pages),
          pointer<T>(v_pages),
          pointer<const std::int64_t>(src),
          pointer<const std::int64_t>(dst),
          count,
          layers,
          pool_pages,
          page_elements,
          layer_stride,
          page_stride};
}

template <class T>
ardiff::RotatePagesParamsOf<T> rotate_params(std::uintptr_t k_pages, std::uintptr_t source,
                                             std::uintptr_t pages, std::uintptr_t deltas,
                                             std::uintptr_t frequencies, std::uintptr_t angles,
                                             std::int64_t count, std::int64_t layers, std::int64_t pool_pages,
                                             std::int64_t rows, std::int64_t dim, std::int64_t layer_stride,
                                             std::int64_t page_stride, std::int64_t source_layer_stride,
                                             std::int64_t source_page_stride) {
  ardiff::RotatePagesParamsOf<T> p{};
  p.k_pages = pointer<T>(k_pages);
  p.source = pointer<const T>(source);
  p.pages = pointer<const std::int64_t>(pages);
  p.deltas = pointer<const std::int64_t>(deltas);
  p.frequencies = pointer<const double>(frequencies);
  p.angles = pointer<float>(angles);
  p.count = count;
  p.layers = layers;
  p.pool_pages = pool_pages;
  p.rows = rows;
  p.dim = dim;
  p.layer_stride = layer_stride;
  p.page_stride = page_stride;
  p.source_layer_stride = source_layer_stride;
  p.source_page_stride = source_page_stride;
  return p;
}

}  // namespace

ARDIFF_BINDING(pages) {
  ardiff::bindings::def(m, "copy_pages", &copy_params<float>, &ardiff::cpu::copy_pages);
  ardiff::bindings::def(m, "rotate_pages", &rotate_params<float>, &ardiff::cpu::rotate_pages);
  // Sizes and strides in bytes: one function for every dtype.
  ARDIFF_DEF_ONE(m, "copy_pages", copy_params<std::uint8_t>, copy_pages)
  ARDIFF_DEF_CUDA(m, rotate_pages, rotate_params)
}
