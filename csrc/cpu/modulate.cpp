// SPDX-License-Identifier: Apache-2.0
// Normalisation with a shift and scale row per frame: x [T, D] -> y [T, D] (and norm(x)). A row is read from
// memory once and twice more from L1; the table rows stay in L1 while a frame lasts. Floor: 8 bytes per
// element, 12 with norm(x).
#include "ardiff/modulate.h"

#include "row_statistics.h"
#include "streaming.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

template <bool streaming>
ARDIFF_SIMD void row(const ModulateParams& p, std::int64_t t) {
  const float *x = p.x + t * p.width, *next = x + p.width;
  const float *shift = p.shift + p.frame_ids[t] * p.shift_stride,
              *scale = p.scale + p.frame_ids[t] * p.scale_stride;
  float *y = p.y + t * p.width, *normed = p.normed ? p.normed + t * p.width : nullptr;
  Statistics s{0.0f, 1.0f};
  if (p.norm != RowNorm::none) {
    s = row_statistics(p.width, p.norm == RowNorm::layer, p.eps,
                       [x](std::int64_t i, int n)
                           __attribute__((always_inline)) { return load_n(x + i, n); });
  }
  const Vec mean = set(s.mean), reciprocal = set(s.reciprocal), one = set(1.0f);
  for_lanes(0, p.width, [&](std::int64_t i, int n) __attribute__((always_inline)) {
    const Vec v = normalised(load_n(x + i, n), mean, reciprocal);
    prefetch(next + i);

    if (normed) put_n<streaming>(normed + i, v, n);
    put_n<streaming>(y + i, modulated(v, one + load_n(scale + i, n), load_n(shift + i, n)), n);
  });
}

template <bool streaming>
void rows(const ModulateParams& p) {
  share_rows(p.tokens, threads_for(p.tokens * p.width),
             [&p](std::int64_t t) __attribute__((always_inline)) { row<streaming>(p, t); });
}

}  // namespace

void modulate(const ModulateParams& p) {
  const std::int64_t values = p.tokens * p.width * (p.normed ? 3 : 2);
  if (p.width % Vec::width == 0 && worth_streaming(p.y, values) &&
      (!p.normed || worth_streaming(p.normed, values))) {
    rows<true>(p);
  } else {
    rows<false>(p);
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
