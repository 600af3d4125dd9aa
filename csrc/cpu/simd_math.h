// SPDX-License-Identifier: Apache-2.0
// What element-wise kernels share: whole-or-partial access, neighbouring lanes, and how many threads are
// worth it.
#pragma once

#include <cstdint>

#include "simd.h"
#include "threads.h"

namespace ardiff::cpu::ARDIFF_ISA {

// n is the constant Vec::width in the body of a loop, so that the branch folds away there.
ARDIFF_SIMD Vec load_n(const float* p, int n) { return n == Vec::width ? load(p) : load_partial(p, n); }
ARDIFF_SIMD void store_n(float* p, Vec a, int n) {
  if (n == Vec::width) {
    store(p, a);
  } else {
    store_partial(p, a, n);
  }
}

// body(offset, n) over [begin, end), n = Vec::width but for the last
template <class Body>
ARDIFF_SIMD void for_lanes(std::int64_t begin, std::int64_t end, Body body) {
  std::int64_t i = begin;
  for (; i + Vec::width <= end; i += Vec::width) body(i, Vec::width);
  if (i < end) body(i, static_cast<int>(end - i));
}

#if defined(ARDIFF_ISA_avx512)
ARDIFF_SIMD Vec swap_pairs(Vec a) { return {_mm512_permute_ps(a.v, 0xB1)}; }
#elif defined(ARDIFF_ISA_avx2)
ARDIFF_SIMD Vec swap_pairs(Vec a) { return {_mm256_permute_ps(a.v, 0xB1)}; }
#else
ARDIFF_SIMD Vec swap_pairs(Vec a) { return {Floats{a.v[1], a.v[0], a.v[3], a.v[2]}}; }
#endif

// Below this many elements per thread, waking the other threads costs more than they save.
constexpr std::int64_t kElementsPerThread = 32768;

ARDIFF_SIMD int threads_for(std::int64_t elements) {
  const std::int64_t limit = max_threads(), worth = elements / kElementsPerThread;
  return static_cast<int>(worth < 1 ? 1 : worth < limit ? worth : limit);
}

}  // namespace ardiff::cpu::ARDIFF_ISA
