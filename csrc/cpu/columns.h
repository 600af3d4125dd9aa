// SPDX-License-Identifier: Apache-2.0
// Sums over tokens by column: every thread owns a range of columns and adds all tokens in order, so that the
// result does not depend on the number of threads.
#pragma once

#include "simd_math.h"

namespace ardiff::cpu::ARDIFF_ISA {

// body(begin, end) for ranges of columns that together cover [0, width)
template <class Body>
ARDIFF_SIMD void for_columns(std::int64_t tokens, std::int64_t width, Body body) {
  constexpr std::int64_t kLine = 16;  // floats per cache line: threads never share one
  const std::int64_t lines = (width + kLine - 1) / kLine;
  const std::int64_t limit = threads_for(tokens * width);
  const std::int64_t ranges = limit < lines ? limit : lines;
  const int threads = static_cast<int>(ranges);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t range = 0; range < ranges; ++range) {
    const std::int64_t begin = lines * range / ranges * kLine, end = lines * (range + 1) / ranges * kLine;
    body(begin, end < width ? end : width);
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
