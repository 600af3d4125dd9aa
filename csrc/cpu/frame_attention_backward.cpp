// SPDX-License-Identifier: Apache-2.0
// Frame attention, backward, float32. P is recomputed from lse; nothing of the forward pass but o and lse is
// kept.
//
//   delta = rowsum(do * o) - dlse,   dS = P * (do v^T - delta)
//   dq = scale dS k    lanes are queries: one work item per (group, kv head, tile of queries), pages streamed
//   dk = scale dS^T q  lanes are keys: one work item per (page, kv head, tile of key rows); the queries that
//   dv = P^T do        see the page are streamed, group after group in the order of the table
//
// Seven products instead of the five of a fused pass: 14 T H K D FLOPs, of which the forward pass needs 4. In
// return every gradient element is summed by one thread in one order: no atomics, the same bits for any
// number of threads. A page that several groups share gets its contributions in table order. Only listed
// pages are read or written.
#include "frame_attention_pages.h"
#include "frame_attention_softmax.h"
#include "frame_attention_transpose.h"
#include "simd_math.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

constexpr int kMostLanes = kMaxVectors * Vec::width;

struct Memory {
  static std::int64_t bytes(std::int64_t dim) {
    return (4 * dim * kMostLanes + 2 * kBlock * kMostLanes + dim) * static_cast<std::int64_t>(sizeof(float)) +
           1024;
  }
  Memory(Scratch& scratch, std::int64_t dim)
      : a(scratch.take<float>(dim * kMostLanes)),
        b(scratch.take<float>(dim * kMostLanes)),
        da(scratch.take<float>(dim * kMostLanes)),
        db(scratch.take<float>(dim * kMostLanes)),
        s(scratch.take<float>(kBlock * kMostLanes)),
        ds(scratch.take<float>(kBlock * kMostLanes)),
        spare(scratch.take<float>(dim)) {}
  float *a, *b, *da, *db;  // q and do, or k and v; the sums for their gradients
  float *s, *ds;
  float* spare;  // the row of lanes without one
};

float finite_lse(float lse) { return lse == -kInfinity ? 0.0f : lse * kLog2E; }

void clear(float* tile, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += Vec::width) store(tile + i, set(0.0f));
}

// q and do head by head, [H][T][D], packed once: as they lie, the rows of a head are heads * dim floats
// apart, so that they share a few sets of the L1 cache and take a page of the TLB each, and every key tile
// streams all of them.
class PackedQueries {
 public:
  explicit PackedQueries(const FrameAttentionBackwardParams& b)
      : tokens_(b.tokens),
        dim_(b.forward.dim),
        memory_(2 * tokens_ * b.forward.heads * dim_ * static_cast<std::int64_t>(sizeof(float)) + 128),
        q_(memory_.take<float>(tokens_ * b.forward.heads * dim_)),
        dout_(memory_.take<float>(tokens_ * b.forward.heads * dim_)) {}

  const float* q(std::int64_t head, std::int64_t token) const { return q_ + (head * tokens_ + token) * dim_; }
  const float* dout(std::int64_t head, std::int64_t token) const {
    return dout_ + (head * tokens_ + token) * dim_;
  }

  // One row, and its delta on the way.
  void pack(const FrameAttentionBackwardParams& b, std::int64_t head, std::int64_t token) const {
    const FrameAttentionParams& p = b.forward;
    const std::int64_t i = token * p.heads + head, to = (head * tokens_ + token) * dim_;
    const float *q = p.q + token * p.q_token + head * p.q_head, *o = p.o + i * dim_,
                *dout = b.dout + i * dim_;
    Vec sum = set(0.0f);
    for_lanes(0, dim_, [&](std::int64_t j, int n) {
      const Vec grad = load_n(dout + j, n);
      store_n(q_ + to + j, load_n(q + j, n), n);
      store_n(dout_ + to + j, grad, n);
      sum = fma(grad, load_n(o + j, n), sum);
    });
    b.delta[i] = reduce_add(sum) - (b.dlse ? b.dlse[i] : 0.0f);
  }

 private:
  std::int64_t tokens_, dim_;
  Scratch memory_;
  float *q_, *dout_;
};

template <int V>
void query_tile(const FrameAttentionBackwardParams& b, const PackedQueries& queries, const QueryItem& item,
                const Memory& memory) {
  constexpr int M = V * Vec::width;
  const FrameAttentionParams& p = b.forward;
  const QueryTile<M> tile(p, item);
  const float *q_rows[M], *do_rows[M];
  float* dq_rows[M];
  alignas(64) float lse[M], delta[M], scale[M];
  for (int lane = 0; lane < M; ++lane) {
    const std::int64_t i = tile.index[lane];
    q_rows[lane] = queries.q(i % p.heads, i / p.heads);
    do_rows[lane] = queries.dout(i % p.heads, i / p.heads);
    dq_rows[lane] = lane < tile.lanes ? b.dq + i * p.dim : memory.spare;
    lse[lane] = finite_lse(p.lse[i]);
    delta[lane] = b.delta[i];
    scale[lane] = p.scale;
  }
  transpose_in<V>(q_rows, p.dim, p.scale * kLog2E, memory.a);
  transpose_in<V>(do_rows, p.dim, 1.0f, memory.b);
  clear(memory.da, p.dim * M);

  Vec limit[V], one[V];
  for (int v = 0; v < V; ++v) {
    limit[v] = load(tile.limit + v * Vec::width);
    one[v] = set(1.0f);
  }
  PageWalk walk(p, item.group, item.kv_head, tile.most);
  Run runs[kBlock];
  int rows, shared;
  while (const int count = walk.next(runs, tile.fewest, &rows, &shared)) {
    for (int r = 0; r < count; ++r) {
      dot<V>(runs[r].x, p.k_row, runs[r].rows, memory.a, p.dim, memory.s + runs[r].at * M, runs[r].y);
      dot<V>(runs[r].y, p.v_row, runs[r].rows, memory.b, p.dim, memory.ds + runs[r].at * M, runs[r].x);
    }
    bias_and_mask<V>(runs, count, shared, limit, memory.s);
    for (int r = 0; r < count; ++r) {
      const Vec entry = set(static_cast<float>(runs[r].entry));
      for (int n = runs[r].at; n < runs[r].at + runs[r].rows; ++n) {
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) {
          const std::int64_t at = n * M + v * Vec::width;
          const Vec prob = exp2_weight(load(memory.s + at) - load(lse + v * Vec::width));
          const Vec ds = prob * (load(memory.ds + at) - load(delta + v * Vec::width));
          store(memory.ds + at, r < shared ? ds : select_less(entry, limit[v], ds, set(0.0f)));
        }
      }
    }
    accumulate<V>(runs, count, shared, &Run::x, p.k_row, p.dim, memory.ds, one, limit, memory.da);
  }
  transpose_out<V>(memory.da, p.dim, scale, dq_rows);
}

// Adds what the queries of tokens [begin, end) and one query head give to a tile of keys.
template <int V>
void stream_queries(const FrameAttentionBackwardParams& b, const PackedQueries& queries, std::int64_t begin,
                    std::int64_t end, std::int64_t head, float bias, const Vec* lane, float valid,
                    const Memory& memory) {
  constexpr int M = V * Vec::width;
  const FrameAttentionParams& p = b.forward;
  Vec one[V];
  for (int v = 0; v < V; ++v) one[v] = set(1.0f);
  const Vec last = set(valid), zero = set(0.0f);
  for (std::int64_t token = begin; token < end; token += kBlock) {
    const int rows = static_cast<int>(end - token < kBlock ? end - token : kBlock);
    const float *q = queries.q(head, token), *dout = queries.dout(head, token);
    dot<V>(q, p.dim, rows, memory.a, p.dim, memory.s, dout);
    dot<V>(dout, p.dim, rows, memory.b, p.dim, memory.ds, q);
    for (int n = 0; n < rows; ++n) {
      const std::int64_t i = (token + n) * p.heads + head;
      const Vec shift = set(bias - finite_lse(p.lse[i])), delta = set(b.delta[i]);
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) {
        const std::int64_t at = n * M + v * Vec::width;
        const Vec prob = select_less(lane[v], last, exp2_weight(load(memory.s + at) + shift), zero);
        store(memory.s + at, prob);
        store(memory.ds + at, prob * (load(memory.ds + at) - delta));
      }
    }
    const Run run = {q, dout, rows, 0, 0, 0.0f};
    accumulate_runs<V, false>(&run, 1, &Run::x, p.dim, p.dim, memory.ds, one, nullptr, memory.da);
    accumulate_runs<V, false>(&run, 1, &Run::y, p.dim, p.dim, memory.s, one, nullptr, memory.db);
  }
}

template <int V>
void key_tile(const FrameAttentionBackwardParams& b, const PackedQueries& queries,
              const PagesInverted& inverted, std::int64_t page, std::int64_t kv_head, std::int64_t first_row,
              const Memory& memory) {
  constexpr int M = V * Vec::width;
  const FrameAttentionParams& p = b.forward;
  const std::int64_t left = inverted.rows(page) - first_row;
  const int lanes = static_cast<int>(left < M ? left : M);
  const float *k_rows[M], *v_rows[M];
  float *dk_rows[M], *dv_rows[M];
  alignas(64) float scale[M], one[M], index[M];
  for (int i = 0; i < M; ++i) {
    const std::int64_t row = first_row + (i < lanes ? i : 0);
    const std::int64_t out = ((page * p.kv_heads + kv_head) * p.page_rows + row) * p.dim;
    k_rows[i] = p.k + page * p.k_page + kv_head * p.k_head + row * p.k_row;
    v_rows[i] = p.v + page * p.v_page + kv_head * p.v_head + row * p.v_row;
    dk_rows[i] = i < lanes ? b.dk + out : memory.spare;
    dv_rows[i] = i < lanes ? b.dv + out : memory.spare;
    scale[i] = p.scale;
    one[i] = 1.0f;
    index[i] = static_cast<float>(first_row + i);
  }
  transpose_in<V>(k_rows, p.dim, p.scale * kLog2E, memory.a);
  transpose_in<V>(v_rows, p.dim, 1.0f, memory.b);
  clear(memory.da, p.dim * M);
  clear(memory.db, p.dim * M);
  Vec lane[V];
  for (int v = 0; v < V; ++v) lane[v] = load(index + v * Vec::width);

  const std::int64_t share = p.heads / p.kv_heads;
  for (const std::int64_t* e = inverted.begin(page); e != inverted.end(page); ++e) {
    if (p.valid[*e] <= first_row) continue;
    const std::int64_t group = inverted.group(*e), position = *e - p.page_ptr[group];
    const float bias = p.bias ? p.bias[*e] * kLog2E : 0.0f;
    for (std::int64_t head = kv_head * share; head < (kv_head + 1) * share; ++head) {
      // Neighbouring query frames that see the page form one run of tokens.
      std::int64_t frame = p.group_ptr[group];
      const std::int64_t last = p.group_ptr[group + 1];
      while (frame < last) {
        while (frame < last && p.seen[frame] <= position) ++frame;
        const std::int64_t begin = frame;
        while (frame < last && p.seen[frame] > position) ++frame;
        stream_queries<V>(b, queries, p.frame_ptr[begin], p.frame_ptr[frame], head, bias, lane,
                          static_cast<float>(p.valid[*e]), memory);
      }
    }
  }
  transpose_out<V>(memory.da, p.dim, scale, dk_rows);
  transpose_out<V>(memory.db, p.dim, one, dv_rows);
}

void run_key_item(const FrameAttentionBackwardParams& b, const PackedQueries& queries,
                  const PagesInverted& inverted, std::int64_t item, const Memory& memory) {
  std::int64_t page, tile;
  // Pages of a head next to each other: their queries are mostly the same, and still in the L2 cache.
  inverted.find(item % inverted.items(), &page, &tile);
  const std::int64_t kv_head = item / inverted.items();
  const EvenTiles tiles(inverted.rows(page));
  const std::int64_t first_row = tiles.first_row(tile);
  with_vectors(tiles.vectors(tile), [&](auto vectors) {
    key_tile<vectors()>(b, queries, inverted, page, kv_head, first_row, memory);
  });
}

}  // namespace

void frame_attention_backward(const FrameAttentionBackwardParams& b) {
  const FrameAttentionParams& p = b.forward;
  const QueryItems items(p);
  const PagesInverted inverted(p);
  const PackedQueries queries(b);
  const std::int64_t query_items = items.count(), key_items = inverted.items() * p.kv_heads;
  const std::int64_t most = query_items > key_items ? query_items : key_items;
  const int limit = max_threads(), threads = static_cast<int>(most < limit ? most : limit);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Scratch scratch(Memory::bytes(p.dim));
    const Memory memory(scratch, p.dim);
#pragma omp for schedule(static)
    for (std::int64_t token = 0; token < b.tokens; ++token) {
      for (std::int64_t head = 0; head < p.heads; ++head) queries.pack(b, head, token);
    }
#pragma omp for schedule(dynamic) nowait
    for (std::int64_t i = 0; i < query_items; ++i) {
      const QueryItem item = items.find(i);
      with_vectors(item.vectors, [&](auto vectors) { query_tile<vectors()>(b, queries, item, memory); });
    }
#pragma omp for schedule(dynamic)
    for (std::int64_t i = 0; i < key_items; ++i) run_key_item(b, queries, inverted, i, memory);
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
