// SPDX-License-Identifier: Apache-2.0
// The third product of frame attention, for gradients of the streamed side (frame_attention_tile.h has the
// other two):
//
//   spread      out[n][j] += sum_m w[n][m] * rows[m][j]        w [streamed row][M], rows [M][pitch]
//
// Here the head dimension lies along the lanes, in pieces of up to kMostPieces vectors, and a few streamed
// rows go together: 6 rows x 4 vectors are 24 FMAs on 10 loads with AVX-512, 5 x 5 (D = 72 and 80) 25 on 10.
// The sums over the lanes of a tile stay in registers, out is read and written once per tile.
#pragma once

#include "simd_math.h"

namespace ardiff::cpu::ARDIFF_ISA {

#if defined(ARDIFF_ISA_avx512)
constexpr int kMostPieces = 5;
template <int P>
constexpr int kSpreadRows = P == 5   ? 5
                            : P == 4 ? 6
                                     : 8;
#else
constexpr int kMostPieces = 3;
template <int P>
constexpr int kSpreadRows = P == 3 ? 4 : 6;
#endif

// `tail`: floats of the last vector that exist in out. Lanes [first, end) of w take part.
template <int M, int P, int N>
ARDIFF_SIMD void spread_rows(const float* w, int first, int end, const float* rows, std::int64_t pitch,
                             float* out, std::int64_t stride, int tail) {
  Vec acc[N][P];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 5
    for (int k = 0; k < P; ++k) {
      acc[i][k] = load_n(out + i * stride + k * Vec::width, k == P - 1 ? tail : Vec::width);
    }
  }
  for (int m = first; m < end; ++m) {
    Vec t[P];
#pragma GCC unroll 5
    for (int k = 0; k < P; ++k) t[k] = load(rows + m * pitch + k * Vec::width);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const Vec a = set(w[i * M + m]);
#pragma GCC unroll 5
      for (int k = 0; k < P; ++k) acc[i][k] = fma(a, t[k], acc[i][k]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 5
    for (int k = 0; k < P; ++k) {
      store_n(out + i * stride + k * Vec::width, acc[i][k], k == P - 1 ? tail : Vec::width);
    }
  }
}

template <int M, int P, int N>
static void spread_rest(int n, const float* w, int first, int end, const float* rows, std::int64_t pitch,
                        float* out, std::int64_t stride, int tail) {
  if constexpr (N > 0) {
    if (n == N) return spread_rows<M, P, N>(w, first, end, rows, pitch, out, stride, tail);
    spread_rest<M, P, N - 1>(n, w, first, end, rows, pitch, out, stride, tail);
  }
}

template <int M, int P>
static void spread_piece(int pieces, const float* w, int count, int first, int end, const float* rows,
                         std::int64_t pitch, float* out, std::int64_t stride, int tail) {
  if constexpr (P > 0) {
    if (pieces != P) {
      return spread_piece<M, P - 1>(pieces, w, count, first, end, rows, pitch, out, stride, tail);
    }
    constexpr int N = kSpreadRows<P>;
    int n = 0;
    for (; n + N <= count; n += N) {
      spread_rows<M, P, N>(w + n * M, first, end, rows, pitch, out + n * stride, stride, tail);
    }
    spread_rest<M, P, N - 1>(count - n, w + n * M, first, end, rows, pitch, out + n * stride, stride, tail);
  }
}

// pitch: dim rounded up to whole vectors; what rows hold beyond dim is multiplied and thrown away.
template <int M>
static void spread(const float* w, int count, int first, int end, const float* rows, std::int64_t dim,
                   std::int64_t pitch, float* out, std::int64_t stride) {
  const int vectors = static_cast<int>(pitch / Vec::width), cuts = (vectors + kMostPieces - 1) / kMostPieces;
  for (int cut = 0, at = 0; cut < cuts; ++cut) {
    const int pieces = vectors / cuts + (cut < vectors % cuts);
    const std::int64_t column = at * Vec::width, left = dim - column;
    const int tail =
        left < pieces * Vec::width ? static_cast<int>(left - (pieces - 1) * Vec::width) : Vec::width;
    spread_piece<M, kMostPieces>(pieces, w, count, first, end, rows + column, pitch, out + column, stride,
                                 tail);
    at += pieces;
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
