// SPDX-License-Identifier: Apache-2.0
// Weighted sums of rows of pages, in all layers. Threads share (layer, head), so that neighbouring rows lie
// side by side; sums run over the sources in their order.
#include "ardiff/pool_pages.h"

#include "simd_math.h"
#include "threads.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

void pool_head(const PoolPagesParams& p, std::int64_t layer, std::int64_t head) {
  float* pages = p.pages + layer * p.layer_stride + head * p.page_rows * p.dim;
  const float* weights = p.weights ? p.weights + layer * p.weight_stride + head * p.dim : nullptr;
  for (std::int64_t n = 0; n < p.count; ++n) {
    const std::int64_t* sources = p.sources + n * p.taps;
    std::int64_t present = 0;
    for (std::int64_t j = 0; j < p.taps; ++j) present += sources[j] >= 0;
    const Vec mean = set(present ? 1.0f / static_cast<float>(present) : 0.0f);
    float* out = pages + p.offset(p.targets[n]);
    for_lanes(0, p.dim, [&](std::int64_t i, int lanes) __attribute__((always_inline)) {
      Vec sum = set(0.0f);
      for (std::int64_t j = 0; j < p.taps; ++j) {
        if (sources[j] < 0) continue;
        const Vec weight = weights ? load_n(weights + j * p.heads * p.dim + i, lanes) : mean;
        sum = pooled(sum, weight, load_n(pages + p.offset(sources[j]) + i, lanes));
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
    for (std::int64_t head = 0; head < p.heads; ++head) pool_head(p, layer, head);
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
