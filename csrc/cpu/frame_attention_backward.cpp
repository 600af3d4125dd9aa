// SPDX-License-Identifier: Apache-2.0
// Frame attention, backward, float32. P is recomputed from lse; nothing of the forward pass but o and lse is
// kept.
//
//   delta = rowsum(do * o) - dlse,   dS = scale P * (do v^T - delta)
//   dq = dS k,   dk = dS^T q,   dv = P^T do
//
// One pass of five products, 10 T H K D FLOPs for K visible keys where the forward pass has 4. A tile of M
// query rows lies along the lanes as in the forward pass; per block of up to kKeys keys:
//
//   S = K q^T, dP = V do^T     dot, from the pages           [keys][M] in L1
//   P, dS                      down the lanes
//   dq += dS^T K               accumulate, from the pages    [D][M] in L1
//   dk += dS q, dv += P do     spread, into the pages of dk and dv, which stay in the L2 cache
//
// A work item is (groups that share pages, kv head) and runs on one thread: its tiles follow each other in
// table order, so each gradient element is one chain of sums in that order, with the same bits for any number
// of threads and no atomics. That makes clips times kv heads items: more threads than that find no work.
// Floor at 180 GF/s a thread and D = 64: 3.6 us per 1,000 visible (query, key) pairs.
//
// Only listed pages are read or written; a lane takes part in the gradients of the pages that it sees only.
#include "frame_attention_pages.h"
#include "frame_attention_softmax.h"
#include "frame_attention_spread.h"
#include "frame_attention_transpose.h"
#include "threads.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

constexpr int kMostLanes = kMaxVectors * Vec::width;
// Keys per block: S and dS together take as much of the L1 cache as the forward pass gives to S.
constexpr int kKeys = kBlock / 2;

std::int64_t pitch_of(std::int64_t dim) { return (dim + Vec::width - 1) / Vec::width * Vec::width; }

struct Memory {
  static std::int64_t bytes(std::int64_t dim) {
    return (3 * dim * kMostLanes + 2 * pitch_of(dim) * kMostLanes + 2 * kKeys * kMostLanes + dim) *
               static_cast<std::int64_t>(sizeof(float)) +
           1024;
  }
  Memory(Scratch& scratch, std::int64_t dim)
      : pitch(pitch_of(dim)),
        q_rows(scratch.take<float>(pitch * kMostLanes)),
        do_rows(scratch.take<float>(pitch * kMostLanes)),
        q(scratch.take<float>(dim * kMostLanes)),
        dout(scratch.take<float>(dim * kMostLanes)),
        dq(scratch.take<float>(dim * kMostLanes)),
        s(scratch.take<float>(kKeys * kMostLanes)),
        ds(scratch.take<float>(kKeys * kMostLanes)),
        spare(scratch.take<float>(dim)) {}
  std::int64_t pitch;
  float *q_rows, *do_rows;  // [M][pitch]
  float *q, *dout, *dq;     // [dim][M]
  float *s, *ds;            // [kKeys][M]
  float* spare;             // the row of lanes without one
};

float finite_lse(float lse) { return lse == -kInfinity ? 0.0f : lse * kLog2E; }

// One row of q and do into the tile's own memory: as they lie, the rows of a head are heads * dim floats
// apart, so that they share a few sets of the L1 cache and take a page of the TLB each. Returns delta.
float copy_row(const FrameAttentionBackwardParams& b, std::int64_t index, std::int64_t q_offset, float* q_row,
               float* do_row) {
  const FrameAttentionParams& p = b.forward;
  const float *q = p.q + q_offset, *o = p.o + index * p.dim, *dout = b.dout + index * p.dim;
  Vec sum = set(0.0f);
  for_lanes(0, p.dim, [&](std::int64_t j, int n) {
    const Vec grad = load_n(dout + j, n);
    store(q_row + j, load_n(q + j, n));
    store(do_row + j, grad);
    sum = fma(grad, load_n(o + j, n), sum);
  });
  return reduce_add(sum) - (b.dlse ? b.dlse[index] : 0.0f);
}

// From S and dP to P and dS, in place.
template <int V>
void gradients(const Run* runs, int count, int shared, const Vec* limit, const float* lse, const float* delta,
               float* s, float* ds) {
  constexpr int M = V * Vec::width;
  for (int r = 0; r < count; ++r) {
    const Vec entry = set(static_cast<float>(runs[r].entry));
    for (int n = runs[r].at; n < runs[r].at + runs[r].rows; ++n) {
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) {
        const std::int64_t at = n * M + v * Vec::width;
        const Vec prob = exp2_weight(load(s + at) - load(lse + v * Vec::width));
        const Vec grad = prob * (load(ds + at) - load(delta + v * Vec::width));
        store(s + at, prob);
        store(ds + at, r < shared ? grad : select_less(entry, limit[v], grad, set(0.0f)));
      }
    }
  }
}

// dk and dv of one run, from the ranges of lanes that see it: a weight of 0 would let the NaN of another lane
// through.
template <int M>
void spread_run(const FrameAttentionBackwardParams& b, const QueryTile<M>& tile, const Run& run, bool shared,
                const Memory& memory) {
  const FrameAttentionParams& p = b.forward;
  const auto seen = [&](int lane) { return shared || static_cast<float>(run.entry) < tile.limit[lane]; };
  for (int first = 0, end = 0; first < tile.lanes; first = end) {
    while (first < tile.lanes && !seen(first)) ++first;
    for (end = first; end < tile.lanes && seen(end);) ++end;
    spread<M>(memory.ds + run.at * M, run.rows, first, end, memory.q_rows, p.dim, memory.pitch,
              b.dk + run.out, p.dim);
    spread<M>(memory.s + run.at * M, run.rows, first, end, memory.do_rows, p.dim, memory.pitch,
              b.dv + run.out, p.dim);
  }
}

template <int V>
void query_tile(const FrameAttentionBackwardParams& b, const QueryItem& item, const Memory& memory) {
  constexpr int M = V * Vec::width;
  const FrameAttentionParams& p = b.forward;
  const QueryTile<M> tile(p, item);
  const float *q_rows[M], *do_rows[M];
  float* dq_rows[M];
  alignas(64) float lse[M], delta[M], one[M];
  for (int lane = 0; lane < M; ++lane) {
    const std::int64_t i = tile.index[lane];
    float *q_row = memory.q_rows + lane * memory.pitch, *do_row = memory.do_rows + lane * memory.pitch;
    delta[lane] = p.scale * copy_row(b, i, tile.q_offset[lane], q_row, do_row);
    q_rows[lane] = q_row;
    do_rows[lane] = do_row;
    dq_rows[lane] = lane < tile.lanes ? b.dq + i * p.dim : memory.spare;
    lse[lane] = finite_lse(p.lse[i]);
    one[lane] = 1.0f;
  }
  transpose_in<V>(q_rows, p.dim, p.scale * kLog2E, memory.q);
  transpose_in<V>(do_rows, p.dim, p.scale, memory.dout);
  for (std::int64_t j = 0; j < p.dim * M; j += Vec::width) store(memory.dq + j, set(0.0f));

  Vec limit[V], ones[V];
  for (int v = 0; v < V; ++v) {
    limit[v] = load(tile.limit + v * Vec::width);
    ones[v] = set(1.0f);
  }
  PageWalk walk(p, item.group, item.kv_head, tile.most, kKeys);
  Run runs[kKeys];
  int rows, shared;
  while (const int count = walk.next(runs, tile.fewest, &rows, &shared)) {
    for (int r = 0; r < count; ++r) {
      dot<V>(runs[r].x, p.k_row, runs[r].rows, memory.q, p.dim, memory.s + runs[r].at * M, runs[r].y);
      dot<V>(runs[r].y, p.v_row, runs[r].rows, memory.dout, p.dim, memory.ds + runs[r].at * M, runs[r].x);
    }
    bias_and_mask<V>(runs, count, shared, limit, memory.s);
    gradients<V>(runs, count, shared, limit, lse, delta, memory.s, memory.ds);
    accumulate<V>(runs, count, shared, &Run::x, p.k_row, p.dim, memory.ds, ones, limit, memory.dq);
    for (int r = 0; r < count; ++r) spread_run<M>(b, tile, runs[r], r < shared, memory);
  }
  transpose_out<V>(memory.dq, p.dim, one, dq_rows);
}

void run_group(const FrameAttentionBackwardParams& b, std::int64_t group, std::int64_t kv_head,
               const Memory& memory) {
  const EvenTiles tiles = query_tiles(b.forward, group);
  for (std::int64_t tile = 0; tile < tiles.count(); ++tile) {
    const QueryItem item{group, kv_head, tiles.first_row(tile), tiles.vectors(tile)};
    with_vectors(item.vectors, [&](auto vectors) { query_tile<vectors()>(b, item, memory); });
  }
}

}  // namespace

void frame_attention_backward(const FrameAttentionBackwardParams& b) {
  const FrameAttentionParams& p = b.forward;
  const GroupsByPage parts(p);
  const std::int64_t items = parts.count() * p.kv_heads;
  const int limit = max_threads(), threads = static_cast<int>(items < limit ? items : limit);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Scratch scratch(Memory::bytes(p.dim));
    const Memory memory(scratch, p.dim);
#pragma omp for schedule(dynamic)
    for (std::int64_t i = 0; i < items; ++i) {
      parts.each(i / p.kv_heads, [&](std::int64_t group) { run_group(b, group, i % p.kv_heads, memory); });
    }
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
