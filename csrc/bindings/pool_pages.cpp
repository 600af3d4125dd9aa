// SPDX-License-Identifier: Apache-2.0
#include "ardiff/pool_pages.h"

#include "binding.h"
#include "cpu/dispatch.h"
#include "cuda.h"

ARDIFF_DISPATCH(void, pool_pages, const ardiff::PoolPagesParams& p)
ARDIFF_CHECKED_LAUNCHER(pool_pages, ardiff::PoolPagesParamsOf)

using ardiff::bindings::pointer;

namespace {

template <class T>
ardiff::PoolPagesParamsOf<T> pool_params(std::uintptr_t pages, std::uintptr_t sources, std::uintptr_t targets,
                                         std::uintptr_t weights, std::int64_t count, std::int64_t taps,
                                         std::int64_t layers, std::int64_t pool_pages, std::int64_t heads,
                                         std::int64_t page_rows, std::int64_t dim, std::int64_t layer_stride,
                                         std::int64_t page_stride, std::int64_t weight_stride) {
  return {pointer<T>(pages),
          pointer<const std::int64_t>(sources),
          pointer<const std::int64_t>(targets),
          pointer<const float>(weights),
          count,
          taps,
          layers,
          pool_pages,
          heads,
          page_rows,
          dim,
          layer_stride,
          page_stride,
          weight_stride};
}

}  // namespace

ARDIFF_BINDING(pool_pages) {
  ardiff::bindings::def(m, "pool_pages", &pool_params<float>, &ardiff::cpu::pool_pages);
  ARDIFF_DEF_CUDA(m, pool_pages, pool_params)
}
