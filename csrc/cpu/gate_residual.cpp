// SPDX-License-Identifier: Apache-2.0
// Gated residual, residual and branch [T, D] -> out [T, D], out may be residual. Floor: 12 bytes per element.
#include "ardiff/gate_residual.h"

#include "simd_math.h"

namespace ardiff::cpu::ARDIFF_ISA {

void gate_residual(const GateResidualParams& p) {
  const int threads = threads_for(p.tokens * p.width);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t t = 0; t < p.tokens; ++t) {
    const float *residual = p.residual + t * p.width, *branch = p.branch + t * p.width;
    const float *gate = p.gate + p.frame_ids[t] * p.gate_stride, *bias = p.bias;
    float* out = p.out + t * p.width;
    for_lanes(0, p.width, [=](std::int64_t i, int n) __attribute__((always_inline)) {
      Vec b = load_n(branch + i, n);
      if (bias) b = b + load_n(bias + i, n);
      store_n(out + i, gated(load_n(residual + i, n), load_n(gate + i, n), b), n);
    });
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
