// SPDX-License-Identifier: Apache-2.0
// Rows of q, o and their gradients into tiles and back: tile[j][lane] = rows[lane][j].
//
// Four columns at a time: every 128-bit part of a vector is loaded from a row of its own, so that a 4 x 4
// transpose inside the parts finishes the job. 20 instructions for 4 * 16 elements with AVX-512; the plain
// double loop took 6 % of the forward pass at 589 keys.
#pragma once

#include <cstdint>

#include "simd.h"

namespace ardiff::cpu::ARDIFF_ISA {

#if defined(ARDIFF_ISA_avx512)

// 128-bit part b holds rows[4 * b][0 .. 4)
ARDIFF_SIMD Vec load_parts(const float* const* rows, std::int64_t j) {
  __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(rows[0] + j));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(rows[4] + j), 1);
  x = _mm512_insertf32x4(x, _mm_loadu_ps(rows[8] + j), 2);
  return {_mm512_insertf32x4(x, _mm_loadu_ps(rows[12] + j), 3)};
}
ARDIFF_SIMD void store_parts(float* const* rows, std::int64_t j, Vec a) {
  _mm_storeu_ps(rows[0] + j, _mm512_castps512_ps128(a.v));
  _mm_storeu_ps(rows[4] + j, _mm512_extractf32x4_ps(a.v, 1));
  _mm_storeu_ps(rows[8] + j, _mm512_extractf32x4_ps(a.v, 2));
  _mm_storeu_ps(rows[12] + j, _mm512_extractf32x4_ps(a.v, 3));
}
ARDIFF_SIMD void transpose_parts(Vec* x) {
  const __m512 a = _mm512_unpacklo_ps(x[0].v, x[1].v), b = _mm512_unpackhi_ps(x[0].v, x[1].v),
               c = _mm512_unpacklo_ps(x[2].v, x[3].v), d = _mm512_unpackhi_ps(x[2].v, x[3].v);
  x[0].v = _mm512_shuffle_ps(a, c, 0x44);
  x[1].v = _mm512_shuffle_ps(a, c, 0xEE);
  x[2].v = _mm512_shuffle_ps(b, d, 0x44);
  x[3].v = _mm512_shuffle_ps(b, d, 0xEE);
}

#elif defined(ARDIFF_ISA_avx2)

ARDIFF_SIMD Vec load_parts(const float* const* rows, std::int64_t j) {
  const __m256 x = _mm256_castps128_ps256(_mm_loadu_ps(rows[0] + j));
  return {_mm256_insertf128_ps(x, _mm_loadu_ps(rows[4] + j), 1)};
}
ARDIFF_SIMD void store_parts(float* const* rows, std::int64_t j, Vec a) {
  _mm_storeu_ps(rows[0] + j, _mm256_castps256_ps128(a.v));
  _mm_storeu_ps(rows[4] + j, _mm256_extractf128_ps(a.v, 1));
}
ARDIFF_SIMD void transpose_parts(Vec* x) {
  const __m256 a = _mm256_unpacklo_ps(x[0].v, x[1].v), b = _mm256_unpackhi_ps(x[0].v, x[1].v),
               c = _mm256_unpacklo_ps(x[2].v, x[3].v), d = _mm256_unpackhi_ps(x[2].v, x[3].v);
  x[0].v = _mm256_shuffle_ps(a, c, 0x44);
  x[1].v = _mm256_shuffle_ps(a, c, 0xEE);
  x[2].v = _mm256_shuffle_ps(b, d, 0x44);
  x[3].v = _mm256_shuffle_ps(b, d, 0xEE);
}

#else

ARDIFF_SIMD Vec load_parts(const float* const* rows, std::int64_t j) { return load(rows[0] + j); }
ARDIFF_SIMD void store_parts(float* const* rows, std::int64_t j, Vec a) { store(rows[0] + j, a); }
ARDIFF_SIMD void transpose_parts(Vec* x) {
  const Floats a = x[0].v, b = x[1].v, c = x[2].v, d = x[3].v;
  for (int i = 0; i < 4; ++i) x[i].v = Floats{a[i], b[i], c[i], d[i]};
}

#endif

// Vector by vector, not column by column: rows of q and o lie a token apart, mostly a page of memory each,
// and the TLB holds 16 pages that are being written.

// tile[j][lane] = factor * rows[lane][j]
template <int V>
static void transpose_in(const float* const* rows, std::int64_t dim, float factor, float* tile) {
  constexpr int M = V * Vec::width;
  const Vec scale = set(factor);
  for (int lane = 0; lane < M; lane += Vec::width) {
    std::int64_t j = 0;
    for (; j + 4 <= dim; j += 4) {
      Vec x[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) x[i] = load_parts(rows + lane + i, j);
      transpose_parts(x);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store(tile + (j + i) * M + lane, scale * x[i]);
    }
    for (; j < dim; ++j) {
      for (int i = lane; i < lane + Vec::width; ++i) tile[j * M + i] = factor * rows[i][j];
    }
  }
}

// rows[lane][j] = tile[j][lane] * factor[lane]
template <int V>
static void transpose_out(const float* tile, std::int64_t dim, const float* factor, float* const* rows) {
  constexpr int M = V * Vec::width;
  for (int lane = 0; lane < M; lane += Vec::width) {
    const Vec scale = load(factor + lane);
    std::int64_t j = 0;
    for (; j + 4 <= dim; j += 4) {
      Vec x[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) x[i] = load(tile + (j + i) * M + lane) * scale;
      transpose_parts(x);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store_parts(rows + lane + i, j, x[i]);
    }
    for (; j < dim; ++j) {
      for (int i = lane; i < lane + Vec::width; ++i) rows[i][j] = tile[j * M + i] * factor[i];
    }
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
