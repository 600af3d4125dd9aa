// SPDX-License-Identifier: Apache-2.0
// The two products that all passes of frame attention are made of, and the walk over pages.
//
// One side of the attention matrix, the *tile*, lies along vector lanes: V vectors, M = V * Vec::width
// columns, stored transposed as [depth][M] in scratch. The other side is *streamed* row by row, straight from
// where it lies (a page of K or V, or rows of q), each element broadcast:
//
//   dot         out[n][M] = sum_j rows[n][j] * tile[j][M]
//               N rows at a time, N * V accumulators in registers
//   accumulate  acc[j][M] = alpha * acc[j][M] + sum_n w[n][M] * rows[n][j]
//               N columns j at a time
//
// So no page is ever packed or transposed, every head dim costs exactly its own FMAs (72 needs no padding to
// 80), and softmax works down the lanes without horizontal reductions. Each output element is one chain of
// FMAs, in an order that depends on the page list alone: the same bits for any thread count, tile position or
// page id.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "ardiff/frame_attention.h"
#include "simd.h"

namespace ardiff::cpu::ARDIFF_ISA {

// Rows (columns) per step, so that 2 * kRows accumulators, 2 tile vectors and a broadcast fill the register
// file: 32 registers for AVX-512, 16 for the others.
#if defined(ARDIFF_ISA_avx512)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif
constexpr int kBlock =
    128;  // streamed rows per softmax step: [kBlock][M] floats of scratch stay in the L1 cache
constexpr float kInfinity = __builtin_inff();

// Cache-line aligned temporary memory of one thread.
class Scratch {
 public:
  explicit Scratch(std::int64_t bytes)
      : data_(std::aligned_alloc(64, static_cast<std::size_t>((bytes + 127) / 64 * 64))),
        next_(static_cast<char*>(data_)) {}
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  T* take(std::int64_t count) {
    T* out = reinterpret_cast<T*>(next_);
    next_ += (count * static_cast<std::int64_t>(sizeof(T)) + 63) / 64 * 64;
    return out;
  }

 private:
  void* data_;
  char* next_;
};

// Consecutive streamed rows with one page's limits. x and y are K and V, or q and do.
struct Run {
  const float *x, *y;
  int rows;
  int at;      // index of the first row in the block
  int entry;   // position in the group's page list
  float bias;  // in units of log 2
};

template <int V, int N>
ARDIFF_SIMD void dot_rows(const float* x, std::int64_t stride, const float* tile, std::int64_t depth,
                          float* out, const float* other) {
  constexpr int M = V * Vec::width;
  Vec acc[N][V];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[i][v] = set(0.0f);
  }
  // Three rows per base pointer: x86 addresses base + {0, 1, 2} * stride, and twelve pointers would not fit
  // in registers.
  const float* base[(N + 2) / 3];
#pragma GCC unroll 4
  for (int i = 0; i < (N + 2) / 3; ++i) base[i] = x + 3 * i * stride;
  for (std::int64_t j = 0; j < depth; ++j) {
    // One line per step of the rows that come next, and of the other operand, which is streamed after this
    // one (a tile of few queries reads every page from memory: 1.3 times faster). A prefetch beyond the page
    // does no harm.
    __builtin_prefetch(x + N * stride + 16 * j);
    __builtin_prefetch(other + 16 * j, 0, 2);
    Vec t[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) t[v] = load(tile + j * M + v * Vec::width);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      const Vec a = set(base[i / 3][(i % 3) * stride + j]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[i][v] = fma(a, t[v], acc[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 2
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

template <int V>
static void dot(const float* x, std::int64_t stride, int rows, const float* tile, std::int64_t depth,
                float* out, const float* other) {
  constexpr int M = V * Vec::width;
  int n = 0;
  for (; n + kRows <= rows; n += kRows)
    dot_rows<V, kRows>(x + n * stride, stride, tile, depth, out + n * M, other + n * stride);
  dot_rest<V, kRows - 1>(rows - n, x + n * stride, stride, tile, depth, out + n * M, other + n * stride);
}

// kMasked: lanes whose limit excludes a run keep their value untouched, so that a NaN in a page that they do
// not see cannot reach them through 0 * NaN.
template <int V, int N, bool kMasked>
ARDIFF_SIMD void accumulate_columns(const Run* runs, int count, bool use_y, std::int64_t stride,
                                    std::int64_t column, const float* w, const Vec* alpha, const Vec* limit,
                                    float* acc) {
  constexpr int M = V * Vec::width;
  Vec a[N][V];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) a[i][v] = load(acc + (column + i) * M + v * Vec::width) * alpha[v];
  }
  for (int r = 0; r < count; ++r) {
    const float* row = (use_y ? runs[r].y : runs[r].x) + column;
    const float* weight = w + runs[r].at * M;
    const Vec entry = set(static_cast<float>(runs[r].entry));
    for (int n = 0; n < runs[r].rows; ++n, row += stride, weight += M) {
      Vec t[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) t[v] = load(weight + v * Vec::width);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) {
        const Vec b = set(row[i]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          const Vec sum = fma(b, t[v], a[i][v]);
          a[i][v] = kMasked ? select_less(entry, limit[v], sum, a[i][v]) : sum;
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(acc + (column + i) * M + v * Vec::width, a[i][v]);
  }
}

template <int V, int N, bool kMasked>
static void accumulate_rest(int n, const Run* runs, int count, bool use_y, std::int64_t stride,
                            std::int64_t column, const float* w, const Vec* alpha, const Vec* limit,
                            float* acc) {
  if constexpr (N > 0) {
    if (n == N)
      return accumulate_columns<V, N, kMasked>(runs, count, use_y, stride, column, w, alpha, limit, acc);
    accumulate_rest<V, N - 1, kMasked>(n, runs, count, use_y, stride, column, w, alpha, limit, acc);
  }
}

template <int V, bool kMasked>
static void accumulate_runs(const Run* runs, int count, bool use_y, std::int64_t stride, std::int64_t dim,
                            const float* w, const Vec* alpha, const Vec* limit, float* acc) {
  std::int64_t j = 0;
  for (; j + kRows <= dim; j += kRows) {
    accumulate_columns<V, kRows, kMasked>(runs, count, use_y, stride, j, w, alpha, limit, acc);
  }
  const int rest = static_cast<int>(dim - j);
  accumulate_rest<V, kRows - 1, kMasked>(rest, runs, count, use_y, stride, j, w, alpha, limit, acc);
}

// The first `shared` runs are seen by every lane, the others only by lanes with limit > entry.
template <int V>
static void accumulate(const Run* runs, int count, int shared, bool use_y, std::int64_t stride,
                       std::int64_t dim, const float* w, const Vec* alpha, const Vec* limit, float* acc) {
  accumulate_runs<V, false>(runs, shared, use_y, stride, dim, w, alpha, limit, acc);
  if (shared < count) {
    const Vec one[2] = {set(1.0f), set(1.0f)};
    accumulate_runs<V, true>(runs + shared, count - shared, use_y, stride, dim, w, one, limit, acc);
  }
}

// tile[j][lane] = factor * rows[lane][j]; lanes without a row are 0.
template <int M>
static void transpose_in(const float* const* rows, int lanes, std::int64_t dim, float factor, float* tile) {
  for (int lane = 0; lane < lanes; ++lane) {
    for (std::int64_t j = 0; j < dim; ++j) tile[j * M + lane] = factor * rows[lane][j];
  }
  for (int lane = lanes; lane < M; ++lane) {
    for (std::int64_t j = 0; j < dim; ++j) tile[j * M + lane] = 0.0f;
  }
}

// rows[lane][j] = tile[j][lane] * factor[lane]
template <int M>
static void transpose_out(const float* tile, int lanes, std::int64_t dim, const float* factor,
                          float* const* rows) {
  for (int lane = 0; lane < lanes; ++lane) {
    for (std::int64_t j = 0; j < dim; ++j) rows[lane][j] = tile[j * M + lane] * factor[lane];
  }
}

// Up to M query rows of one group and one kv head: rows are (token, query head of that kv head), token-major.
template <int M>
struct QueryTile {
  int lanes;
  std::int64_t index[M];  // token * heads + head
  std::int64_t q_offset[M];
  alignas(64) float limit[M];  // entries that the lane sees; 0 in lanes without a row
  int fewest, most;            // over the lanes with a row

  QueryTile(const FrameAttentionParams& p, std::int64_t group, std::int64_t kv_head, std::int64_t first_row) {
    const std::int64_t share = p.heads / p.kv_heads;
    std::int64_t frame = p.group_ptr[group];
    const std::int64_t token0 = p.frame_ptr[frame], token_end = p.frame_ptr[p.group_ptr[group + 1]];
    const std::int64_t rows = (token_end - token0) * share - first_row;
    lanes = static_cast<int>(rows < M ? rows : M);
    fewest = most = -1;
    for (int lane = 0; lane < lanes; ++lane) {
      const std::int64_t token = token0 + (first_row + lane) / share;
      const std::int64_t head = kv_head * share + (first_row + lane) % share;
      while (token >= p.frame_ptr[frame + 1]) ++frame;
      index[lane] = token * p.heads + head;
      q_offset[lane] = token * p.q_token + head * p.q_head;
      limit[lane] = static_cast<float>(p.seen[frame]);
      if (lane == 0 || p.seen[frame] < fewest) fewest = p.seen[frame];
      if (lane == 0 || p.seen[frame] > most) most = p.seen[frame];
    }
    for (int lane = lanes; lane < M; ++lane) limit[lane] = 0.0f;
  }
};

// Walks a group's page list in blocks of up to kBlock rows. Blocks depend on the list alone, not on who sees
// how much.
class PageWalk {
 public:
  PageWalk(const FrameAttentionParams& p, std::int64_t group, std::int64_t kv_head, int entries)
      : p_(p), first_(p.page_ptr[group]), kv_head_(kv_head), entries_(entries) {}

  // Fills `runs` (room for kBlock) and returns their number, 0 at the end. `rows`: rows in the block;
  // `shared`: runs among the first `fewest` entries.
  int next(Run* runs, int fewest, int* rows, int* shared) {
    int count = 0;
    *rows = *shared = 0;
    while (entry_ < entries_ && *rows < kBlock) {
      const std::int64_t e = first_ + entry_;
      const int left = p_.valid[e] - row_, room = kBlock - *rows, take = left < room ? left : room;
      if (take > 0) {
        const std::int64_t page = p_.pages[e];
        runs[count++] = {p_.k + page * p_.k_page + kv_head_ * p_.k_head + row_ * p_.k_row,
                         p_.v + page * p_.v_page + kv_head_ * p_.v_head + row_ * p_.v_row,
                         take,
                         *rows,
                         entry_,
                         p_.bias ? p_.bias[e] * kLog2E : 0.0f};
        *rows += take;
        row_ += take;
        if (entry_ < fewest) *shared = count;
      }
      if (row_ >= p_.valid[e]) {
        ++entry_;
        row_ = 0;
      }
    }
    return count;
  }

 private:
  const FrameAttentionParams& p_;
  std::int64_t first_, kv_head_;
  int entries_, entry_ = 0, row_ = 0;
};

// logits += bias; -infinity where a lane does not see the run.
template <int V>
static void bias_and_mask(const Run* runs, int count, int shared, const Vec* limit, float* s) {
  constexpr int M = V * Vec::width;
  for (int r = 0; r < count; ++r) {
    if (r < shared && runs[r].bias == 0.0f) continue;
    const Vec bias = set(runs[r].bias), entry = set(static_cast<float>(runs[r].entry)),
              hidden = set(-kInfinity);
    float* row = s + runs[r].at * M;
    for (int n = 0; n < runs[r].rows; ++n, row += M) {
      for (int v = 0; v < V; ++v) {
        const Vec logit = load(row + v * Vec::width) + bias;
        store(row + v * Vec::width, r < shared ? logit : select_less(entry, limit[v], logit, hidden));
      }
    }
  }
}

// Work items of the query passes: (group, kv head, tile of M query rows), tiles of a head next to each other.
template <int M>
class QueryItems {
 public:
  explicit QueryItems(const FrameAttentionParams& p) : p_(p) {
    for (std::int64_t g = 0; g < p.groups; ++g) count_ += tiles(g) * p.kv_heads;
  }
  std::int64_t count() const { return count_; }
  void find(std::int64_t item, std::int64_t* group, std::int64_t* kv_head, std::int64_t* first_row) const {
    std::int64_t g = 0;
    while (item >= tiles(g) * p_.kv_heads) item -= tiles(g++) * p_.kv_heads;
    *group = g;
    *kv_head = item / tiles(g);
    *first_row = item % tiles(g) * M;
  }

 private:
  std::int64_t tiles(std::int64_t g) const {
    const std::int64_t tokens = p_.frame_ptr[p_.group_ptr[g + 1]] - p_.frame_ptr[p_.group_ptr[g]];
    return (tokens * (p_.heads / p_.kv_heads) + M - 1) / M;
  }
  const FrameAttentionParams& p_;
  std::int64_t count_ = 0;
};

}  // namespace ardiff::cpu::ARDIFF_ISA
