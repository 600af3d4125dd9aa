// SPDX-License-Identifier: Apache-2.0
// Frame attention, forward, float32: o = softmax(scale q k^T + bias) v and lse, over page lists.
//
//   q [T, H, D], k and v pages [P, Hkv, R, D] -> o [T, H, D], lse [T, H]
//
// Work: 4 T H K D FLOPs for K visible keys; bytes: K and V once per tile from the L2 cache. One exp per logit
// adds about a tenth at D = 72. A work item is (group, kv head, tile of M queries) and runs on one thread; a
// tile holds M queries along the lanes (32 with AVX-512, 16 with AVX2): query frames of a group share tiles.
// Per block of up to kBlock keys:
//
//   S = K q^T          dot, from the pages          S [keys][M] in L1
//   m, P = exp2(S - m) down the lanes                online softmax, base 2: scale * log2(e) is folded into
//   the tile O = alpha O + V P  accumulate, from the pages   O [D][M] in L1
//
// Assumes: the head dimension is dense in q, k, v; the table was validated
// (ardiff_engine/ops/frame_table.py). Any D, any number of rows. Rows beyond `valid` and pages that a query
// does not see may hold NaN: they are never multiplied.
#include "frame_attention_tile.h"
#include "threads.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

template <int V>
struct Memory {
  static constexpr int M = V * Vec::width;
  static std::int64_t bytes(std::int64_t dim) {
    return (2 * dim * M + kBlock * M) * static_cast<std::int64_t>(sizeof(float)) + 256;
  }
  Memory(Scratch& scratch, std::int64_t dim)
      : q(scratch.take<float>(dim * M)),
        o(scratch.take<float>(dim * M)),
        s(scratch.take<float>(kBlock * M)) {}
  float *q, *o, *s;
};

template <int V>
void forward_tile(const FrameAttentionParams& p, std::int64_t group, std::int64_t kv_head,
                  std::int64_t first_row, const Memory<V>& memory) {
  constexpr int M = V * Vec::width;
  const QueryTile<M> tile(p, group, kv_head, first_row);
  const float* q_rows[M] = {};
  float* o_rows[M] = {};
  for (int lane = 0; lane < tile.lanes; ++lane) {
    q_rows[lane] = p.q + tile.q_offset[lane];
    o_rows[lane] = p.o + tile.index[lane] * p.dim;
  }
  transpose_in<M>(q_rows, tile.lanes, p.dim, p.scale * kLog2E, memory.q);
  for (std::int64_t i = 0; i < p.dim * M; ++i) memory.o[i] = 0.0f;

  Vec m[V], l[V], limit[V], alpha[V], shift[V];
  for (int v = 0; v < V; ++v) {
    m[v] = set(-kInfinity);
    l[v] = set(0.0f);
    limit[v] = load(tile.limit + v * Vec::width);
  }
  PageWalk walk(p, group, kv_head, tile.most);
  Run runs[kBlock];
  int rows, shared;
  while (const int count = walk.next(runs, tile.fewest, &rows, &shared)) {
    for (int r = 0; r < count; ++r) {
      dot<V>(runs[r].x, p.k_row, runs[r].rows, memory.q, p.dim, memory.s + runs[r].at * M, runs[r].y);
    }
    bias_and_mask<V>(runs, count, shared, limit, memory.s);
    for (int v = 0; v < V; ++v) {
      float* s = memory.s + v * Vec::width;
      Vec top = m[v];
      for (int n = 0; n < rows; ++n) top = max(top, load(s + n * M));
      // A lane that has seen nothing yet keeps m = -infinity; shift by 0 then, so that P is 0 and not NaN.
      shift[v] = select_less(set(-kInfinity), top, top, set(0.0f));
      alpha[v] = exp2(m[v] - shift[v]);
      m[v] = top;
      Vec sum = l[v] * alpha[v];
      for (int n = 0; n < rows; ++n) {
        const Vec e = exp2(load(s + n * M) - shift[v]);
        store(s + n * M, e);
        sum = sum + e;
      }
      l[v] = sum;
    }
    accumulate<V>(runs, count, shared, true, p.v_row, p.dim, memory.s, alpha, limit, memory.o);
  }

  alignas(64) float inverse[M], top[M], sum[M];
  for (int v = 0; v < V; ++v) {
    store(inverse + v * Vec::width,
          select_less(set(0.0f), l[v], set(1.0f) / l[v], l[v]));  // 0 stays 0, NaN stays NaN
    store(top + v * Vec::width, m[v]);
    store(sum + v * Vec::width, l[v]);
  }
  transpose_out<M>(memory.o, tile.lanes, p.dim, inverse, o_rows);
  for (int lane = 0; lane < tile.lanes; ++lane) {
    p.lse[tile.index[lane]] = sum[lane] == 0.0f ? -kInfinity : top[lane] * kLn2 + __builtin_logf(sum[lane]);
  }
}

template <int V>
void forward(const FrameAttentionParams& p) {
  const QueryItems<V * Vec::width> items(p);
  const std::int64_t count = items.count();
  const int limit = max_threads(), threads = static_cast<int>(count < limit ? count : limit);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Scratch scratch(Memory<V>::bytes(p.dim));
    const Memory<V> memory(scratch, p.dim);
#pragma omp for schedule(dynamic)
    for (std::int64_t item = 0; item < count; ++item) {
      std::int64_t group, kv_head, first_row;
      items.find(item, &group, &kv_head, &first_row);
      forward_tile<V>(p, group, kv_head, first_row, memory);
    }
  }
}

// Frames of few tokens leave half of a two-vector tile empty: use one vector when no group fills more.
bool narrow(const FrameAttentionParams& p) {
  for (std::int64_t g = 0; g < p.groups; ++g) {
    const std::int64_t tokens = p.frame_ptr[p.group_ptr[g + 1]] - p.frame_ptr[p.group_ptr[g]];
    if (tokens * (p.heads / p.kv_heads) > Vec::width) return false;
  }
  return true;
}

}  // namespace

void frame_attention(const FrameAttentionParams& p) { narrow(p) ? forward<1>(p) : forward<2>(p); }

}  // namespace ardiff::cpu::ARDIFF_ISA
