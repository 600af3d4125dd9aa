// SPDX-License-Identifier: Apache-2.0
// The two products that all passes of frame attention are made of.
//
// One side of the attention matrix, the *tile*, lies along vector lanes: V vectors, M = V * Vec::width
// columns, stored transposed as [depth][M] in scratch. The other side is *streamed* row by row, straight from
// where it lies (a page of K or V, or rows of q), each element broadcast:
//
//   dot         out[n][M] = sum_j rows[n][j] * tile[j][M]
//               kStep<V> rows at a time, kStep<V> * V accumulators in registers
//   accumulate  acc[j][M] = alpha * acc[j][M] + sum_n w[n][M] * rows[n][j]
//               kStep<V> columns j at a time
//
// So no page is ever packed or transposed, every head dim costs exactly its own FMAs (72 needs no padding to
// 80), and softmax works down the lanes without horizontal reductions. Each output element is one chain of
// FMAs, in an order that depends on the page list alone: the same bits for any V, thread count, tile position
// or page id.
//
// Three vectors are the best shape: 11 loads feed 24 FMAs (two vectors: 14), and a step of 8 columns divides
// every head dim in use. Alone, with AVX-512, dot reaches 97 % of the FMA peak and accumulate 91 %
// (benchmarks/worklog/frame_attention.md).
#pragma once

#include <cstdint>

#include "simd.h"

namespace ardiff::cpu::ARDIFF_ISA {

constexpr int kMaxVectors = 3;
// Rows (columns) per step, so that the accumulators, the tile vectors and a broadcast fill the register file:
// 32 registers for AVX-512, 16 for the others.
#if defined(ARDIFF_ISA_avx512)
template <int V>
constexpr int kStep = V == 3 ? 8 : 12;
#else
template <int V>
constexpr int kStep = V == 3 ? 4 : 6;
#endif
// Streamed rows per softmax step: the weights [kBlock][M] and the lines of a column step stay in the L1
// cache.
constexpr int kBlock = 96;

// Consecutive streamed rows with one page's limits. x and y are K and V.
struct Run {
  const float *x, *y;
  int rows;
  int at;            // index of the first row in the block
  int entry;         // position in the group's page list
  float bias;        // in units of log 2
  std::int64_t out;  // offset of the first row in dense pages [P, Hkv, R, D]: in dk and dv
};
using Operand = const float* Run::*;

template <int V, int N>
ARDIFF_SIMD void dot_rows(const float* x, std::int64_t stride, const float* tile, std::int64_t depth,
                          float* out, const float* other) {
  constexpr int M = V * Vec::width;
  Vec acc[N][V];
#pragma GCC unroll 12
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) acc[i][v] = set(0.0f);
  }
  // Three rows per base pointer: x86 addresses base + {0, 1, 2} * stride, and twelve pointers would not fit
  // in registers.
  const float* base[(N + 2) / 3];
#pragma GCC unroll 4
  for (int i = 0; i < (N + 2) / 3; ++i) base[i] = x + 3 * i * stride;
  // One prefetch per step, spread over what comes next: N more rows in the first half, N rows of the other
  // operand, which is streamed after this one, in the second. A prefetch beyond the page does no harm.
  const auto half = [&](std::int64_t begin, std::int64_t end, const float* ahead) {
    for (std::int64_t j = begin; j < end; ++j, ahead += 2 * N) {
      __builtin_prefetch(ahead);
      Vec t[V];
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) t[v] = load(tile + j * M + v * Vec::width);
#pragma GCC unroll 12
      for (int i = 0; i < N; ++i) {
        const Vec a = set(base[i / 3][(i % 3) * stride + j]);
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) acc[i][v] = fma(a, t[v], acc[i][v]);
      }
    }
  };
  half(0, depth / 2, x + N * stride);
  half(depth / 2, depth, other);
#pragma GCC unroll 12
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) store(out + i * M + v * Vec::width, acc[i][v]);
  }
}

template <int V, int N>
static void dot_rest(int n, const float* x, std::int64_t stride, const float* tile, std::int64_t depth,
                     float* out, const float* other) {
  if constexpr (N > 0) {
    if (n == N) return dot_rows<V, N>(x, stride, tile, depth, out, other);
    dot_rest<V, N - 1>(n, x, stride, tile, depth, out, other);
  }
}

// `other`: what is streamed next, rows with the same stride.
template <int V>
static void dot(const float* x, std::int64_t stride, int rows, const float* tile, std::int64_t depth,
                float* out, const float* other) {
  constexpr int M = V * Vec::width, N = kStep<V>;
  int n = 0;
  for (; n + N <= rows; n += N) {
    dot_rows<V, N>(x + n * stride, stride, tile, depth, out + n * M, other + n * stride);
  }
  dot_rest<V, N - 1>(rows - n, x + n * stride, stride, tile, depth, out + n * M, other + n * stride);
}

// kMasked: lanes whose limit excludes a run keep their value untouched, so that a NaN in a page that they do
// not see cannot reach them through 0 * NaN.
template <int V, int N, bool kMasked>
ARDIFF_SIMD void accumulate_columns(const Run* runs, int count, Operand rows, std::int64_t stride,
                                    std::int64_t column, const float* w, const Vec* alpha, const Vec* limit,
                                    float* acc) {
  constexpr int M = V * Vec::width;
  Vec a[N][V];
#pragma GCC unroll 12
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) a[i][v] = load(acc + (column + i) * M + v * Vec::width) * alpha[v];
  }
  for (int r = 0; r < count; ++r) {
    const float* row = runs[r].*rows + column;
    const float* weight = w + runs[r].at * M;
    const Vec entry = set(static_cast<float>(runs[r].entry));
    for (int n = 0; n < runs[r].rows; ++n, row += stride, weight += M) {
      // Rows of 512 bytes map to an eighth of the L1 cache and push each other out before the next columns.
      __builtin_prefetch(row + 8 * stride);
      Vec t[V];
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) t[v] = load(weight + v * Vec::width);
#pragma GCC unroll 12
      for (int i = 0; i < N; ++i) {
        const Vec b = set(row[i]);
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) {
          const Vec sum = fma(b, t[v], a[i][v]);
          a[i][v] = kMasked ? select_less(entry, limit[v], sum, a[i][v]) : sum;
        }
      }
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) store(acc + (column + i) * M + v * Vec::width, a[i][v]);
  }
}

template <int V, int N, bool kMasked>
static void accumulate_rest(int n, const Run* runs, int count, Operand rows, std::int64_t stride,
                            std::int64_t column, const float* w, const Vec* alpha, const Vec* limit,
                            float* acc) {
  if constexpr (N > 0) {
    if (n == N) {
      return accumulate_columns<V, N, kMasked>(runs, count, rows, stride, column, w, alpha, limit, acc);
    }
    accumulate_rest<V, N - 1, kMasked>(n, runs, count, rows, stride, column, w, alpha, limit, acc);
  }
}

template <int V, bool kMasked>
static void accumulate_runs(const Run* runs, int count, Operand rows, std::int64_t stride, std::int64_t dim,
                            const float* w, const Vec* alpha, const Vec* limit, float* acc) {
  constexpr int N = kStep<V>;
  std::int64_t j = 0;
  for (; j + N <= dim; j += N) {
    accumulate_columns<V, N, kMasked>(runs, count, rows, stride, j, w, alpha, limit, acc);
  }
  const int rest = static_cast<int>(dim - j);
  accumulate_rest<V, N - 1, kMasked>(rest, runs, count, rows, stride, j, w, alpha, limit, acc);
}

// The first `shared` runs are seen by every lane, the others only by lanes with limit > entry.
template <int V>
static void accumulate(const Run* runs, int count, int shared, Operand rows, std::int64_t stride,
                       std::int64_t dim, const float* w, const Vec* alpha, const Vec* limit, float* acc) {
  accumulate_runs<V, false>(runs, shared, rows, stride, dim, w, alpha, limit, acc);
  if (shared < count) {
    Vec one[V];
    for (int v = 0; v < V; ++v) one[v] = set(1.0f);
    accumulate_runs<V, true>(runs + shared, count - shared, rows, stride, dim, w, one, limit, acc);
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
