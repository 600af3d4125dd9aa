// SPDX-License-Identifier: Apache-2.0
// Frame attention, backward, float32. P is recomputed from lse; nothing of the forward pass but o and lse is
// kept.
//
//   delta = rowsum(do * o) - dlse,   dS = P * (do v^T - delta)
//   dq = scale dS k    lanes are queries: one work item per (group, kv head, tile of queries), pages streamed
//   dk = scale dS^T q  lanes are keys: one work item per (page, kv head, tile of key rows), the queries that
//   see the dv = P^T do        page streamed, group after group in the order of the table
//
// Seven products instead of the five of a fused pass: 14 T H K D FLOPs, of which the forward pass needs 4. In
// return every gradient element is summed by one thread in one order: no atomics, the same bits for any
// number of threads. A page that several groups share gets its contributions in table order. Only listed
// pages are read or written.
#include "frame_attention_tile.h"
#include "threads.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

constexpr int V = 2;
constexpr int M = V * Vec::width;

struct Memory {
  static std::int64_t bytes(std::int64_t dim) {
    return (4 * dim * M + 2 * kBlock * M) * static_cast<std::int64_t>(sizeof(float)) + 512;
  }
  Memory(Scratch& scratch, std::int64_t dim)
      : a(scratch.take<float>(dim * M)),
        b(scratch.take<float>(dim * M)),
        da(scratch.take<float>(dim * M)),
        db(scratch.take<float>(dim * M)),
        s(scratch.take<float>(kBlock * M)),
        ds(scratch.take<float>(kBlock * M)) {}
  float *a, *b, *da, *db, *s, *ds;
};

float finite_lse(float lse) { return lse == -kInfinity ? 0.0f : lse * kLog2E; }

void clear(float* tile, std::int64_t dim) {
  for (std::int64_t i = 0; i < dim * M; ++i) tile[i] = 0.0f;
}

void deltas(const FrameAttentionBackwardParams& b, int threads) {
  const std::int64_t rows = b.tokens * b.forward.heads, dim = b.forward.dim;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t i = 0; i < rows; ++i) {
    float sum = b.dlse ? -b.dlse[i] : 0.0f;
    for (std::int64_t j = 0; j < dim; ++j) sum += b.dout[i * dim + j] * b.forward.o[i * dim + j];
    b.delta[i] = sum;
  }
}

void query_tile(const FrameAttentionBackwardParams& b, std::int64_t group, std::int64_t kv_head,
                std::int64_t first_row, const Memory& memory) {
  const FrameAttentionParams& p = b.forward;
  const QueryTile<M> tile(p, group, kv_head, first_row);
  const float *q_rows[M] = {}, *do_rows[M] = {};
  float* dq_rows[M] = {};
  alignas(64) float lse[M] = {}, delta[M] = {}, scale[M];
  for (int lane = 0; lane < M; ++lane) scale[lane] = p.scale;
  for (int lane = 0; lane < tile.lanes; ++lane) {
    const std::int64_t i = tile.index[lane];
    q_rows[lane] = p.q + tile.q_offset[lane];
    do_rows[lane] = b.dout + i * p.dim;
    dq_rows[lane] = b.dq + i * p.dim;
    lse[lane] = finite_lse(p.lse[i]);
    delta[lane] = b.delta[i];
  }
  transpose_in<M>(q_rows, tile.lanes, p.dim, p.scale * kLog2E, memory.a);
  transpose_in<M>(do_rows, tile.lanes, p.dim, 1.0f, memory.b);
  clear(memory.da, p.dim);

  Vec limit[V];
  const Vec one[V] = {set(1.0f), set(1.0f)};
  for (int v = 0; v < V; ++v) limit[v] = load(tile.limit + v * Vec::width);
  PageWalk walk(p, group, kv_head, tile.most);
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
        for (int v = 0; v < V; ++v) {
          const std::int64_t at = n * M + v * Vec::width;
          const Vec prob = exp2(load(memory.s + at) - load(lse + v * Vec::width));
          const Vec ds = prob * (load(memory.ds + at) - load(delta + v * Vec::width));
          store(memory.ds + at, r < shared ? ds : select_less(entry, limit[v], ds, set(0.0f)));
        }
      }
    }
    accumulate<V>(runs, count, shared, false, p.k_row, p.dim, memory.ds, one, limit, memory.da);
  }
  transpose_out<M>(memory.da, tile.lanes, p.dim, scale, dq_rows);
}

// For each page, the entries that list it, in table order; and the work items (page, tile of its rows).
class PagesInverted {
 public:
  PagesInverted(const FrameAttentionParams& p)
      : entries_(p.page_ptr[p.groups]),
        memory_((2 * p.num_pages + 4 + 2 * entries_) * static_cast<std::int64_t>(sizeof(std::int64_t)) + 512),
        start_(memory_.take<std::int64_t>(p.num_pages + 2)),
        tiles_(memory_.take<std::int64_t>(p.num_pages + 1)),
        by_page_(memory_.take<std::int64_t>(entries_)),
        group_(memory_.take<std::int64_t>(entries_)) {
    for (std::int64_t i = 0; i < p.num_pages + 2; ++i) start_[i] = 0;
    for (std::int64_t i = 0; i < p.num_pages + 1; ++i) tiles_[i] = 0;
    for (std::int64_t g = 0; g < p.groups; ++g) {
      for (std::int64_t e = p.page_ptr[g]; e < p.page_ptr[g + 1]; ++e) {
        group_[e] = g;
        ++start_[p.pages[e] + 2];
        const std::int64_t tiles = (p.valid[e] + M - 1) / M;
        if (tiles > tiles_[p.pages[e] + 1]) tiles_[p.pages[e] + 1] = tiles;
      }
    }
    for (std::int64_t i = 0; i < p.num_pages; ++i) {
      start_[i + 2] += start_[i + 1];
      tiles_[i + 1] += tiles_[i];
    }
    for (std::int64_t e = 0; e < entries_; ++e) by_page_[start_[p.pages[e] + 1]++] = e;
    pages_ = p.num_pages;
  }
  std::int64_t items() const { return tiles_[pages_]; }
  std::int64_t group(std::int64_t entry) const { return group_[entry]; }
  const std::int64_t* begin(std::int64_t page) const { return by_page_ + start_[page]; }
  const std::int64_t* end(std::int64_t page) const { return by_page_ + start_[page + 1]; }
  void find(std::int64_t item, std::int64_t* page, std::int64_t* first_row) const {
    std::int64_t low = 0, high = pages_;  // the last page whose first item is <= item
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (tiles_[middle] <= item ? low : high) = middle;
    }
    *page = low;
    *first_row = (item - tiles_[low]) * M;
  }

 private:
  std::int64_t entries_, pages_;
  Scratch memory_;
  std::int64_t *start_, *tiles_, *by_page_, *group_;
};

// Adds what the queries of tokens [begin, end) and one query head give to a tile of keys.
void stream_queries(const FrameAttentionBackwardParams& b, std::int64_t begin, std::int64_t end,
                    std::int64_t head, float bias, const Vec* lane, float valid, const Memory& memory) {
  const FrameAttentionParams& p = b.forward;
  const Vec one[V] = {set(1.0f), set(1.0f)}, last = set(valid), zero = set(0.0f);
  const std::int64_t do_row = p.heads * p.dim;
  for (std::int64_t token = begin; token < end; token += kBlock) {
    const int rows = static_cast<int>(end - token < kBlock ? end - token : kBlock);
    const Run q_run = {p.q + token * p.q_token + head * p.q_head, nullptr, rows, 0, 0, 0.0f};
    const Run do_run = {nullptr, b.dout + token * do_row + head * p.dim, rows, 0, 0, 0.0f};
    dot<V>(q_run.x, p.q_token, rows, memory.a, p.dim, memory.s, do_run.y);
    dot<V>(do_run.y, do_row, rows, memory.b, p.dim, memory.ds, q_run.x);
    for (int n = 0; n < rows; ++n) {
      const std::int64_t i = (token + n) * p.heads + head;
      const Vec shift = set(bias - finite_lse(p.lse[i])), delta = set(b.delta[i]);
      for (int v = 0; v < V; ++v) {
        const std::int64_t at = n * M + v * Vec::width;
        const Vec prob = select_less(lane[v], last, exp2(load(memory.s + at) + shift), zero);
        store(memory.s + at, prob);
        store(memory.ds + at, prob * (load(memory.ds + at) - delta));
      }
    }
    accumulate_runs<V, false>(&q_run, 1, false, p.q_token, p.dim, memory.ds, one, nullptr, memory.da);
    accumulate_runs<V, false>(&do_run, 1, true, do_row, p.dim, memory.s, one, nullptr, memory.db);
  }
}

void key_tile(const FrameAttentionBackwardParams& b, const PagesInverted& inverted, std::int64_t page,
              std::int64_t kv_head, std::int64_t first_row, const Memory& memory) {
  const FrameAttentionParams& p = b.forward;
  std::int64_t valid = 0;
  for (const std::int64_t* e = inverted.begin(page); e != inverted.end(page); ++e) {
    if (p.valid[*e] > valid) valid = p.valid[*e];
  }
  const int lanes = static_cast<int>(valid - first_row < M ? valid - first_row : M);
  const float *k_rows[M] = {}, *v_rows[M] = {};
  float *dk_rows[M] = {}, *dv_rows[M] = {};
  alignas(64) float scale[M], one[M], index[M];
  for (int i = 0; i < M; ++i) {
    scale[i] = p.scale;
    one[i] = 1.0f;
    index[i] = static_cast<float>(first_row + i);
  }
  for (int i = 0; i < lanes; ++i) {
    const std::int64_t row = first_row + i;
    k_rows[i] = p.k + page * p.k_page + kv_head * p.k_head + row * p.k_row;
    v_rows[i] = p.v + page * p.v_page + kv_head * p.v_head + row * p.v_row;
    const std::int64_t out = ((page * p.kv_heads + kv_head) * p.page_rows + row) * p.dim;
    dk_rows[i] = b.dk + out;
    dv_rows[i] = b.dv + out;
  }
  transpose_in<M>(k_rows, lanes, p.dim, p.scale * kLog2E, memory.a);
  transpose_in<M>(v_rows, lanes, p.dim, 1.0f, memory.b);
  clear(memory.da, p.dim);
  clear(memory.db, p.dim);
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
        stream_queries(b, p.frame_ptr[begin], p.frame_ptr[frame], head, bias, lane,
                       static_cast<float>(p.valid[*e]), memory);
      }
    }
  }
  transpose_out<M>(memory.da, lanes, p.dim, scale, dk_rows);
  transpose_out<M>(memory.db, lanes, p.dim, one, dv_rows);
}

}  // namespace

void frame_attention_backward(const FrameAttentionBackwardParams& b) {
  const FrameAttentionParams& p = b.forward;
  const QueryItems<M> queries(p);
  const PagesInverted inverted(p);
  const std::int64_t query_items = queries.count(), key_items = inverted.items() * p.kv_heads;
  const std::int64_t most = query_items > key_items ? query_items : key_items;
  const int limit = max_threads(), threads = static_cast<int>(most < limit ? most : limit);
  deltas(b, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Scratch scratch(Memory::bytes(p.dim));
    const Memory memory(scratch, p.dim);
#pragma omp for schedule(dynamic) nowait
    for (std::int64_t item = 0; item < query_items; ++item) {
      std::int64_t group, kv_head, first_row;
      queries.find(item, &group, &kv_head, &first_row);
      query_tile(b, group, kv_head, first_row, memory);
    }
#pragma omp for schedule(dynamic)
    for (std::int64_t item = 0; item < key_items; ++item) {
      std::int64_t page, first_row;
      inverted.find(item / p.kv_heads, &page, &first_row);
      key_tile(b, inverted, page, item % p.kv_heads, first_row, memory);
    }
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
