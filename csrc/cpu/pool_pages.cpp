// SPDX-License-Identifier: Apache-2.0
// Weighted sums of rows of pages, in all layers. Threads share (layer, target); sums run over the sources in
// their order.
#include "ardiff/pool_pages.h"

#include "simd_math.h"
#include "threads.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

void pool_row(const PoolPagesParams& p, std::int64_t layer, std::int64_t n) {
  float* pages = p.pages + layer * p.layer_stride;
  const std::int64_t* sources = p.sources + n * p.taps;
  std::int64_t present = 0;
  for (std::int64_t j = 0; j < p.taps; ++j) present += sources[j] >= 0;
  const Vec mean = set(present ? 1.0f / static_cast<float>(present) : 0.0f);
  for (std::int64_t head = 0; head < p.heads; ++head) {
    float* out = pages + p.offset(p.targets[n]) + head * p.page_rows * p.dim;
    for_lanes(0, p.dim, [&](std::int64_t i, int lanes) __attribute__((always_inline)) {
      Vec sum = set(0.0f);
      for (std::int64_t j = 0; j < p.taps; ++j) {
        if (sources[j] < 0) continue;
        const float* row = pages + p.offset(sources[j]) + head * p.page_rows * p.dim;
        const std::int64_t own = layer * p.weight_stride + (j * p.heads + head) * p.dim + i;
        sum = pooled(sum, p.weights ? load_n(p.weights + own, lanes) : mean, load_n(row + i, lanes));
      }
      store_n(out + i, sum, lanes);
    });
  }
}

}  // namespace

void pool_pages(const PoolPagesParams& p) {
  const int threads = threads_for(p.layers * p.count * p.taps * p.heads * p.dim);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t layer = 0; layer < p.layers; ++layer) {
    for (std::int64_t n = 0; n < p.count; ++n) pool_row(p, layer, n);
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
