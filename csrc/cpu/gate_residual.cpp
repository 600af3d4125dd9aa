// SPDX-License-Identifier: Apache-2.0
// Gated residual, residual and branch [T, D] -> out [T, D], out may be residual. Floor: 12 bytes per element.
#include "ardiff/gate_residual.h"

#include "streaming.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

template <bool streaming>
void rows(const GateResidualParams& p) {
  share_rows(p.tokens, threads_for(p.tokens * p.width), [&p](std::int64_t t) {
    const float *residual = p.residual + t * p.width, *branch = p.branch + t * p.width;
    const float *gate = p.gate + p.frame_ids[t] * p.gate_stride, *bias = p.bias;
    float* out = p.out + t * p.width;
    for_lanes(0, p.width, [=](std::int64_t i, int n) __attribute__((always_inline)) {
      prefetch(branch + i + kAhead);
      prefetch(residual + i + kAhead);
      Vec b = load_n(branch + i, n);
      if (bias) b = b + load_n(bias + i, n);
      put_n<streaming>(out + i, gated(load_n(residual + i, n), load_n(gate + i, n), b), n);
    });
  });
}

}  // namespace

void gate_residual(const GateResidualParams& p) {
  // In place the lines are in the cache already.
  if (p.out != p.residual && p.width % Vec::width == 0 && worth_streaming(p.out, 3 * p.tokens * p.width)) {
    rows<true>(p);
  } else {
    rows<false>(p);
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
