// SPDX-License-Identifier: Apache-2.0
// Frame attention, forward, float32: o = softmax(scale q k^T + bias) v and lse, over page lists.
//
//   q [T, H, D], k and v pages [P, Hkv, R, D] -> o [T, H, D], lse [T, H]
//
// Work: 4 T H K D FLOPs for K visible keys; bytes: K and V once per tile from the L2 cache or beyond. The
// exponentials add a twentieth at D = 128. A work item is (group, kv head, tile of M query rows) and runs on
// one thread; a tile holds M rows along the lanes (up to 48 with AVX-512, 24 with AVX2): query frames of a
// group share tiles. Per block of up to kBlock keys:
//
//   S = K q^T          dot, from the pages          S [keys][M] in L1
//   m, P = exp2(S - m) down the lanes               online softmax
//   O = alpha O + V P  accumulate, from the pages   O [D][M] in L1
//
// A page list is cut into chunks of kChunkBlocks blocks, each with a softmax of its own, merged in the order
// of the list. That is so for every tile: with fewer tiles than threads the chunks run side by side, and the
// result has the same bits whether they did or not.
//
// Assumes: the head dimension is dense in q, k, v; the table was validated
// (ardiff_engine/ops/frame_table.py). Any D, any number of rows. Rows beyond `valid` and pages that a query
// does not see may hold NaN: they are never multiplied.
#include "frame_attention_softmax.h"
#include "frame_attention_transpose.h"
#include "frame_attention_walk.h"
#include "threads.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

constexpr int kChunkBlocks = 10;
constexpr int kMostLanes = kMaxVectors * Vec::width;

// O [D][M] not yet divided by l, the running maximum m and the sum l of one tile.
template <int V>
struct Softmax {
  float* o;
  Vec m[V], l[V];
};

struct Memory {
  static std::int64_t bytes(std::int64_t dim) {
    return (3 * dim * kMostLanes + kBlock * kMostLanes + dim) * static_cast<std::int64_t>(sizeof(float)) +
           512;
  }
  Memory(Scratch& scratch, std::int64_t dim)
      : q(scratch.take<float>(dim * kMostLanes)),
        o(scratch.take<float>(dim * kMostLanes)),
        part(scratch.take<float>(dim * kMostLanes)),
        s(scratch.take<float>(kBlock * kMostLanes)),
        spare(scratch.take<float>(dim)) {}
  float *q, *o, *part, *s;
  float* spare;  // the row of lanes without one
};

template <int V>
void load_queries(const FrameAttentionParams& p, const QueryTile<V * Vec::width>& tile, float* q) {
  const float* rows[V * Vec::width];
  for (int lane = 0; lane < V * Vec::width; ++lane) rows[lane] = p.q + tile.q_offset[lane];
  transpose_in<V>(rows, p.dim, p.scale * kLog2E, q);
}

// One chunk of the page list. `into.o` may hold anything.
template <int V>
void attend(const FrameAttentionParams& p, const QueryItem& item, const QueryTile<V * Vec::width>& tile,
            std::int64_t chunk, const float* q, float* s, Softmax<V>& into) {
  Vec limit[V], alpha[V];
  for (int v = 0; v < V; ++v) {
    into.m[v] = set(-kInfinity);
    into.l[v] = set(0.0f);
    limit[v] = load(tile.limit + v * Vec::width);
  }
  for (std::int64_t i = 0; i < p.dim * V; ++i) store(into.o + i * Vec::width, set(0.0f));
  PageWalk walk(p, item.group, item.kv_head, tile.most);
  walk.skip(chunk * kChunkBlocks * kBlock);
  Run runs[kBlock];
  for (int block = 0; block < kChunkBlocks; ++block) {
    int rows, shared;
    const int count = walk.next(runs, tile.fewest, &rows, &shared);
    if (count == 0) return;
    for (int r = 0; r < count; ++r) {
      dot<V>(runs[r].x, p.k_row, runs[r].rows, q, p.dim, s + runs[r].at * V * Vec::width, runs[r].y);
    }
    bias_and_mask<V>(runs, count, shared, limit, s);
    softmax_block<V>(rows, s, into.m, into.l, alpha);
    accumulate<V>(runs, count, shared, &Run::y, p.v_row, p.dim, s, alpha, limit, into.o);
  }
}

// A chunk that no lane sees leaves `into` as it is.
template <int V>
void merge(const Softmax<V>& part, std::int64_t dim, Softmax<V>& into) {
  constexpr int M = V * Vec::width;
  for (int v = 0; v < V; ++v) {
    const Vec top = max(into.m[v], part.m[v]), shift = softmax_shift(top);
    const Vec a = exp2_weight(into.m[v] - shift), b = exp2_weight(part.m[v] - shift);
    into.m[v] = top;
    into.l[v] = fma(into.l[v], a, part.l[v] * b);
    for (std::int64_t j = 0; j < dim; ++j) {
      float* o = into.o + j * M + v * Vec::width;
      store(o, fma(load(o), a, load(part.o + j * M + v * Vec::width) * b));
    }
  }
}

template <int V>
void finish(const FrameAttentionParams& p, const QueryTile<V * Vec::width>& tile, const Softmax<V>& sum,
            float* spare) {
  constexpr int M = V * Vec::width;
  alignas(64) float inverse[M], top[M], total[M];
  for (int v = 0; v < V; ++v) {
    const Vec l = sum.l[v];  // 0 stays 0, NaN stays NaN
    store(inverse + v * Vec::width, select_less(set(0.0f), l, set(1.0f) / l, l));
    store(top + v * Vec::width, sum.m[v]);
    store(total + v * Vec::width, l);
  }
  float* rows[M];
  for (int lane = 0; lane < M; ++lane) {
    rows[lane] = lane < tile.lanes ? p.o + tile.index[lane] * p.dim : spare;
  }
  transpose_out<V>(sum.o, p.dim, inverse, rows);
  for (int lane = 0; lane < tile.lanes; ++lane) {
    p.lse[tile.index[lane]] =
        total[lane] == 0.0f ? -kInfinity : top[lane] * kLn2 + __builtin_logf(total[lane]);
  }
}

std::int64_t chunks(const FrameAttentionParams& p, std::int64_t group, int entries) {
  std::int64_t rows = 0;
  for (std::int64_t e = p.page_ptr[group]; e < p.page_ptr[group] + entries; ++e) rows += p.valid[e];
  constexpr std::int64_t kChunk = kChunkBlocks * kBlock;
  return rows <= kChunk ? 1 : (rows + kChunk - 1) / kChunk;
}

template <int V>
void forward_tile(const FrameAttentionParams& p, const QueryItem& item, const Memory& memory) {
  const QueryTile<V * Vec::width> tile(p, item);
  load_queries<V>(p, tile, memory.q);
  Softmax<V> sum{memory.o, {}, {}}, part{memory.part, {}, {}};
  attend<V>(p, item, tile, 0, memory.q, memory.s, sum);
  const std::int64_t count = chunks(p, item.group, tile.most);
  for (std::int64_t chunk = 1; chunk < count; ++chunk) {
    attend<V>(p, item, tile, chunk, memory.q, memory.s, part);
    merge<V>(part, p.dim, sum);
  }
  finish<V>(p, tile, sum, memory.spare);
}

// The same in two steps: chunks into slots of (dim + 2) * kMostLanes floats, then their merge.
template <int V>
void forward_chunk(const FrameAttentionParams& p, const QueryItem& item, std::int64_t chunk,
                   const Memory& memory, float* slot) {
  const QueryTile<V * Vec::width> tile(p, item);
  load_queries<V>(p, tile, memory.q);
  Softmax<V> part{slot, {}, {}};
  attend<V>(p, item, tile, chunk, memory.q, memory.s, part);
  float* state = slot + p.dim * kMostLanes;
  for (int v = 0; v < V; ++v) {
    store(state + v * Vec::width, part.m[v]);
    store(state + kMostLanes + v * Vec::width, part.l[v]);
  }
}

template <int V>
void merge_chunks(const FrameAttentionParams& p, const QueryItem& item, std::int64_t count, float* slots,
                  const Memory& memory) {
  Softmax<V> sum{slots, {}, {}};
  for (std::int64_t chunk = 0; chunk < count; ++chunk, slots += (p.dim + 2) * kMostLanes) {
    Softmax<V> part{slots, {}, {}};
    const float* state = slots + p.dim * kMostLanes;
    for (int v = 0; v < V; ++v) {
      part.m[v] = load(state + v * Vec::width);
      part.l[v] = load(state + kMostLanes + v * Vec::width);
    }
    if (chunk == 0) {
      sum = part;
    } else {
      merge<V>(part, p.dim, sum);
    }
  }
  finish<V>(p, QueryTile<V * Vec::width>(p, item), sum, memory.spare);
}

void forward_tiles(const FrameAttentionParams& p, const QueryItems& items, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Scratch scratch(Memory::bytes(p.dim));
    const Memory memory(scratch, p.dim);
#pragma omp for schedule(dynamic)
    for (std::int64_t i = 0; i < items.count(); ++i) {
      const QueryItem item = items.find(i);
      with_vectors(item.vectors, [&](auto vectors) { forward_tile<vectors()>(p, item, memory); });
    }
  }
}

void forward_chunks(const FrameAttentionParams& p, const QueryItems& items, std::int64_t most, int threads) {
  const std::int64_t slot = (p.dim + 2) * kMostLanes, tasks = items.count() * most;
  Scratch slots(tasks * slot * static_cast<std::int64_t>(sizeof(float)));
  float* data = slots.take<float>(tasks * slot);
#pragma omp parallel num_threads(static_cast<int>(tasks < threads ? tasks : threads))
  {
    Scratch scratch(Memory::bytes(p.dim));
    const Memory memory(scratch, p.dim);
#pragma omp for schedule(dynamic)
    for (std::int64_t i = 0; i < tasks; ++i) {
      const QueryItem item = items.find(i / most);
      with_vectors(item.vectors, [&](auto vectors) {
        forward_chunk<vectors()>(p, item, i % most, memory, data + i * slot);
      });
    }
#pragma omp for schedule(dynamic)
    for (std::int64_t i = 0; i < items.count(); ++i) {
      const QueryItem item = items.find(i);
      with_vectors(item.vectors, [&](auto vectors) {
        merge_chunks<vectors()>(p, item, most, data + i * most * slot, memory);
      });
    }
  }
}

}  // namespace

void frame_attention(const FrameAttentionParams& p) {
  const QueryItems items(p);
  const std::int64_t count = items.count();
  const int threads = max_threads();
  std::int64_t most = 1;
  for (std::int64_t g = 0; g < p.groups; ++g) {
    const std::int64_t cut = chunks(p, g, static_cast<int>(p.page_ptr[g + 1] - p.page_ptr[g]));
    if (cut > most) most = cut;
  }
  if (count > 0 && count < threads && most > 1) {
    forward_chunks(p, items, most, threads);
  } else {
    forward_tiles(p, items, static_cast<int>(count < threads ? count : threads));
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
