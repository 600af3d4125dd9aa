// SPDX-License-Identifier: Apache-2.0
// Backward of gate_residual: dy, branch [T, D] -> dbranch [T, D], dgate [M, D], dbias [D]. One pass by
// columns, tokens in order (see columns.h). Floor: 12 bytes per element.
#include "ardiff/gate_residual.h"
#include "columns.h"
#include "streaming.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

template <bool streaming>
void columns(const GateResidualBackwardParams& p, std::int64_t begin, std::int64_t end) {
  const auto clear = [=](float* out) {
    for_lanes(begin, end, [=](std::int64_t i, int n) { store_n(out + i, set(0.0f), n); });
  };
  for (std::int64_t r = 0; r < p.rows; ++r) clear(p.dgate + r * p.width);
  if (p.bias) clear(p.dbias);
  for (std::int64_t t = 0; t < p.tokens; ++t) {
    const float *dy = p.dy + t * p.width, *branch = p.branch + t * p.width;
    const float* gate = p.gate + p.frame_ids[t] * p.gate_stride;
    float *dbranch = p.dbranch + t * p.width, *dgate = p.dgate + p.frame_ids[t] * p.width;
    for_lanes(begin, end, [&](std::int64_t i, int n) __attribute__((always_inline)) {
      prefetch(dy + i + kAhead);
      prefetch(branch + i + kAhead);
      const Vec g = load_n(dy + i, n), d = g * load_n(gate + i, n);
      Vec b = load_n(branch + i, n);
      if (p.bias) {
        b = b + load_n(p.bias + i, n);
        store_n(p.dbias + i, load_n(p.dbias + i, n) + d, n);
      }
      put_n<streaming>(dbranch + i, d, n);
      store_n(dgate + i, fma(g, b, load_n(dgate + i, n)), n);
    });
  }
  if (streaming) finish_streams();
}

}  // namespace

void gate_residual_backward(const GateResidualBackwardParams& p) {
  const bool streaming = p.width % Vec::width == 0 && worth_streaming(p.dbranch, 3 * p.tokens * p.width);
  for_columns(p.tokens, p.width, [&](std::int64_t begin, std::int64_t end) {
    streaming ? columns<true>(p, begin, end) : columns<false>(p, begin, end);
  });
}

}  // namespace ardiff::cpu::ARDIFF_ISA
