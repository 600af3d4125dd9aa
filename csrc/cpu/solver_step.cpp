// SPDX-License-Identifier: Apache-2.0
// One solver step with guidance and noise: x, outs [B, N, E] -> x', x0 [N, E]. One pass; reads x, the
// branches with a weight and the terms with a coefficient, writes two values per element. Floor: 4 (B + 3)
// bytes per element.
#include "ardiff/solver_step.h"

#include "philox_simd.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

template <bool streaming>
void step(const SolverStepParams& p, std::int64_t row, std::int64_t begin, std::int64_t end) {
  const SolverRow c = p.coefficients[row];
  const std::int64_t offset = row * p.elements, branch_stride = p.rows * p.elements;
  const float *x = p.x + offset, *outs = p.outs + offset, *weights = p.weights + row;
  float *result = p.result + offset, *clean = p.x0 + offset;
  const Vec limit = set(c.limit), least = set(-c.limit);
  const bool clamped = c.limit < __builtin_inff();

  // x0 and the two terms that every solver has
  const auto predict = [&](std::int64_t i, int n) __attribute__((always_inline)) {
    Vec out = set(0.0f);
    for (std::int64_t branch = 0; branch < p.branches; ++branch) {
      const float weight = weights[branch * p.rows];
      if (weight != 0.0f) {
        prefetch(outs + branch * branch_stride + i + kAhead);
        out = fma(set(weight), load_n(outs + branch * branch_stride + i, n), out);
      }
    }
    prefetch(x + i + kAhead);
    const Vec state = load_n(x + i, n);
    Vec x0 = predicted_clean(set(c.p), state, set(c.q), out);
    if (clamped) x0 = max(least, min(limit, x0));  // in this order NaN stays NaN
    put_n<streaming>(clean + i, x0, n);
    return advanced(set(c.a), state, set(c.b), x0);
  };
  const auto finish = [&](std::int64_t i, Vec y, int n) __attribute__((always_inline)) {
    for (int step = 0; step < kSolverHistory; ++step) {
      if (c.c[step] != 0.0f) y = fma(set(c.c[step]), load_n(p.history[step] + offset + i, n), y);
    }
    put_n<streaming>(result + i, y, n);
  };

  if (c.e == 0.0f) {
    for_lanes(begin, end, [&](std::int64_t i, int n) { finish(i, predict(i, n), n); });
    return;
  }
  const auto noisy = [&](std::int64_t i, Vec eps, int n)
                         __attribute__((always_inline)) { finish(i, fma(set(c.e), eps, predict(i, n)), n); };
  if (p.noise) {
    const float* noise = p.noise + offset;
    for_lanes(begin, end, [&](std::int64_t i, int n) { noisy(i, load_n(noise + i, n), n); });
  } else {
    for_noise(noise_key(p.keys + 5 * row), begin, end, noisy);
  }
}

template <bool streaming>
void run(const SolverStepParams& p) {
  for_chunks(p.rows, p.elements, [&p](std::int64_t row, std::int64_t begin, std::int64_t end) {
    step<streaming>(p, row, begin, end);
  });
}

}  // namespace

void solver_step(const SolverStepParams& p) {
  const std::int64_t values = (p.branches + 3) * p.rows * p.elements;
  if (p.elements % Vec::width == 0 && worth_streaming(p.result, values) && worth_streaming(p.x0, values)) {
    run<true>(p);
  } else {
    run<false>(p);
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
