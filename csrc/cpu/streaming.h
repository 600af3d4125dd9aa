// SPDX-License-Identifier: Apache-2.0
// Stores that go past the caches, for results that are larger than those.
//
// An ordinary store first reads its cache line from memory, and leaves in the caches what the next op will
// not find there any more. Streaming avoids both: a copy of 128 MB runs at 18 instead of 12 GB/s on one core
// of an Ice Lake. Results that fit into the caches must not be streamed, the next op would have to fetch them
// from memory.
//
// Streamed stores are not ordered with others: each thread calls finish_streams() when it has written its
// part (share_rows does), or the thread that reads the result next could find old values.
#pragma once

#include "cache_size.h"
#include "simd_math.h"

namespace ardiff::cpu::ARDIFF_ISA {

// One that receives whole vectors at multiples of Vec::width from `out` on, of an op that moves `values`.
ARDIFF_SIMD bool worth_streaming(const float* out, std::int64_t values) {
  return values * static_cast<std::int64_t>(sizeof(float)) > cache_size() &&
         reinterpret_cast<std::uintptr_t>(out) % sizeof(Vec) == 0;
}

// store_n of a full vector past the caches where `streaming`
template <bool streaming>
ARDIFF_SIMD void put_n(float* p, Vec a, int n) {
  if (streaming && n == Vec::width) {
    stream(p, a);
  } else {
    store_n(p, a, n);
  }
}

// Fetches the cache line of p into L1. Any address will do, so reading ahead needs no bounds.
ARDIFF_SIMD void prefetch(const float* p) { __builtin_prefetch(p, 0, 3); }

// How far a loop over contiguous values reads ahead. The hardware stops at the end of a page of 4 KB.
constexpr std::int64_t kAhead = 512;

// body(i) for i in [0, count); each thread has one range, and its streamed stores have arrived at the end.
template <class Body>
ARDIFF_SIMD void share_rows(std::int64_t count, int threads, Body body) {
  if (count == 0) return;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static) nowait
    for (std::int64_t i = 0; i < count; ++i) body(i);
    finish_streams();
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
