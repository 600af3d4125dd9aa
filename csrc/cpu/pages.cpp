// SPDX-License-Identifier: Apache-2.0
// Copies pages, and rotates the K of pages, in all layers. Both move 8 bytes per value; threads share (layer,
// page).
#include "ardiff/pages.h"

#include <cstring>

#include "rope_simd.h"

namespace ardiff::cpu::ARDIFF_ISA {

void copy_pages(const CopyPagesParams& p) {
  const int threads = threads_for(2 * p.layers * p.count * p.page_elements);
  const auto bytes = static_cast<std::size_t>(p.page_elements) * sizeof(float);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t layer = 0; layer < p.layers; ++layer) {
    for (std::int64_t i = 0; i < p.count; ++i) {
      const std::int64_t from = layer * p.layer_stride + p.src[i] * p.page_stride;
      const std::int64_t to = layer * p.layer_stride + p.dst[i] * p.page_stride;
      std::memcpy(p.k_pages + to, p.k_pages + from, bytes);
      std::memcpy(p.v_pages + to, p.v_pages + from, bytes);
    }
  }
}

void rotate_pages(const RotatePagesParams& p) {
  for (std::int64_t i = 0; i < p.count; ++i) {
    compute_angles(p.deltas + i, p.frequencies, 1, p.dim,
                   {p.angles + 2 * i * p.dim, p.angles + (2 * i + 1) * p.dim});
  }
  const int threads = threads_for(p.layers * p.count * p.rows * p.dim);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t layer = 0; layer < p.layers; ++layer) {
    for (std::int64_t i = 0; i < p.count; ++i) {
      const Angles angles{p.angles + 2 * i * p.dim, p.angles + (2 * i + 1) * p.dim};
      float* out = p.k_pages + layer * p.layer_stride + p.pages[i] * p.page_stride;
      const float* in = p.source ? p.source + layer * p.source_layer_stride + i * p.source_page_stride : out;
      for (std::int64_t row = 0; row < p.rows; ++row, in += p.dim, out += p.dim) {
        for_lanes(0, p.dim, [&](std::int64_t j, int n) __attribute__((always_inline)) {
          store_n(out + j, rotate_pairs(load_n(in + j, n), angles, j, n), n);
        });
      }
    }
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
