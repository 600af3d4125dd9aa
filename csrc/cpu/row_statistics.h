// SPDX-License-Identifier: Apache-2.0
// Mean and reciprocal root of a row, in two passes over data that stays in L1. The order of the sums depends
// on the vector width only, never on threads or on neighbouring rows.
#pragma once

#include "simd_math.h"

namespace ardiff::cpu::ARDIFF_ISA {

// Sum of term(offset, n) over [0, width); lanes that a partial term does not cover must be 0.
template <class Term>
ARDIFF_SIMD float sum_lanes(std::int64_t width, Term term) {
  Vec a = set(0.0f), b = a, c = a, d = a;
  std::int64_t i = 0;
  for (; i + 4 * Vec::width <= width; i += 4 * Vec::width) {
    a = a + term(i, Vec::width);
    b = b + term(i + Vec::width, Vec::width);
    c = c + term(i + 2 * Vec::width, Vec::width);
    d = d + term(i + 3 * Vec::width, Vec::width);
  }
  for (; i + Vec::width <= width; i += Vec::width) a = a + term(i, Vec::width);
  if (i < width) b = b + term(i, static_cast<int>(width - i));
  return reduce_add((a + b) + (c + d));
}

// Zero in the lanes from n on.
ARDIFF_SIMD Vec keep_lanes(Vec a, int n) {
  if (n == Vec::width) return a;
  alignas(64) float lanes[Vec::width];
  store(lanes, a);
  return load_partial(lanes, n);
}

struct Statistics {
  float mean, reciprocal;
};

// value(offset, n): the row; partial loads are 0 beyond n.
template <class Value>
ARDIFF_SIMD Statistics row_statistics(std::int64_t width, bool centred, float eps, Value value) {
  const float scale = 1.0f / static_cast<float>(width);
  const float mean = centred ? sum_lanes(width, value) * scale : 0.0f;
  const Vec m = set(mean);
  const float squares = sum_lanes(width, [&](std::int64_t i, int n) __attribute__((always_inline)) {
    const Vec d = keep_lanes(value(i, n) - m, n);
    return d * d;
  });
  return {mean, 1.0f / __builtin_sqrtf(squares * scale + eps)};
}

}  // namespace ardiff::cpu::ARDIFF_ISA
