// SPDX-License-Identifier: Apache-2.0
// Frame attention, forward, for every NVIDIA GPU since sm_80: o = softmax(scale q k^T + bias) v and lse, over
// page lists, following the schedule of ardiff/attention_work.h.
//
//   q [T, H, D], k and v pages [P, Hkv, R, D] -> o [T, H, D], lse [T, H]; bfloat16 or float16, D <= 128, any
//   R
//
// Cost: 4 T H K D FLOPs for K visible keys and one exp2 per logit. Bytes: q and o once; K and V once per tile
// and kv head, from the L2 cache. Floor on an H100 SXM (990 TFLOP/s dense bfloat16), 12 heads, D = 128, 4680
// queries, 32760 keys: 942 GFLOP, 0.95 ms. mma.sync reaches about 62 % of that rate at best, and attention
// kernels of this class 330 to 370 TFLOP/s, so 280 to 320 (3.1 ms) are expected here. Not yet run on a GPU.
//
// Grid: tiles x kv heads. A block of 4 warps takes a tile of 64 or 128 query rows, a warp 16 or 32 of them:
// with 32, each fragment of K and V that ldmatrix reads feeds two mma, so shared memory (128 B per cycle)
// does not limit. All threads copy (cp.async), all compute. A step is 64 keys: four key blocks of 16, of any
// pages, so pages of 16 rows and pages of 144 rows run at the same speed and no key is padded but the tail of
// a page to 16.
//
//   for each step:  barrier: K here    start the load that takes the slot of the V just used    S = q K^T,
//   softmax
//                   barrier: V here    start the load that takes the slot of this K             O = alpha O +
//                   P V
//
// Barriers make a slot free (all warps are done with what it held) and publish what arrived (each thread
// waits for its own copies first). A warp skips steps that none of its rows sees, and takes the unmasked path
// where all see all.
//
// Assumes: D, and all strides, are multiples of 8; q, k, v, o are 16-byte aligned (checked by the launcher);
// the schedule was built for this table. Page ids are checked here: one out of range is not seen and sets
// kBadView.
#include "ardiff/frame_attention.h"
#include "ardiff/storage.h"
#include "cuda/frame_attention_sizes.h"
#include "launch.cuh"
#if ARDIFF_KERNELS
#include "cuda/frame_attention_float.cuh"
#include "cuda/frame_attention_merge.cuh"
#include "cuda/frame_attention_warp.cuh"
#endif

namespace ardiff::cuda {

template <class T, int kDim, int kRows>
__global__ void frame_attention_kernel(const FrameAttentionParams p, const AttentionWork work);
__global__ void frame_attention_float_kernel(const FrameAttentionParams p, const AttentionWork work);
template <class T>
__global__ void frame_attention_merge_kernel(const FrameAttentionParams p, const AttentionWork work);

#if ARDIFF_KERNELS

// Writes the rows of a warp: to o and lse, or, for one part of several, to the workspace.
template <class T, int kTiles, int kDim>
__device__ inline void write_rows(const FrameAttentionParams& p, const AttentionWork& work, int first_row,
                                  int lane, unsigned char* staging, const WarpState<kTiles, kDim>& state) {
  // Read again rather than kept: the loop over steps has no registers to spare.
  const AttentionTile tile = work.tiles[blockIdx.x];
  const int kv_head = static_cast<int>(blockIdx.y);
  const int dim = static_cast<int>(p.dim);
  const std::int64_t first_partial = (tile.part * p.kv_heads + kv_head) * work.tile_rows;
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = state.sum[t][half];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
      const float lse = sum == 0.0f ? -infinity() : (state.top[t][half] + log2_exact(sum)) * kLn2;
      const int in_warp = t * 16 + half * 8 + lane / 4, row = first_row + in_warp;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const float a = state.o[t][n][2 * half] * inverse, b = state.o[t][n][2 * half + 1] * inverse;
        const int column = n * 8 + lane % 4 * 2;
        if (tile.part < 0) {
          const std::uint32_t at = Swizzle<kDim>::offset(in_warp, n) + lane % 4 * 4;
          *reinterpret_cast<std::uint32_t*>(staging + at) = pack<T>(a, b);
        } else if (row < tile.rows && column < dim) {
          float* to = work.partial_o + (first_partial + row) * dim + column;
          *reinterpret_cast<float2*>(to) = float2{a, b};
        }
      }
      if (lane % 4 == 0 && row < tile.rows) {
        if (tile.part < 0) {
          const QueryRow at(p, tile.token, tile.row + row, kv_head);
          p.lse[at.token * p.heads + at.head] = lse;
        } else {
          work.partial_lse[first_partial + row] = lse;
        }
      }
    }
  }
  if (tile.part >= 0) return;
  // Through shared memory, so that a row of o leaves in 16-byte pieces. The warp's own rows of q are no
  // longer needed.
  warp_barrier();
  auto* o = reinterpret_cast<std::uint16_t*>(p.o);
  for (int index = lane; index < kTiles * 16 * (kDim / 8); index += 32) {
    const int in_warp = index / (kDim / 8), chunk = index % (kDim / 8), row = first_row + in_warp;
    if (row >= tile.rows || chunk * 8 >= dim) continue;
    const QueryRow at(p, tile.token, tile.row + row, kv_head);
    *reinterpret_cast<uint4*>(o + (at.token * p.heads + at.head) * dim + chunk * 8) =
        *reinterpret_cast<const uint4*>(staging + Swizzle<kDim>::offset(in_warp, chunk));
  }
}

template <class T, int kDim, int kRows>
__global__ void __launch_bounds__(kThreads, 2)
    frame_attention_kernel(const FrameAttentionParams p, const AttentionWork work) {
  constexpr int kTiles = kRows / (16 * kWarps), kSlots = Ring<kDim>::kSlots;
  const SharedMemory<kDim, kRows> shared(shared_memory());
  const AttentionTile tile = work.tiles[blockIdx.x];
  const int kv_head = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x),
            lane = thread % 32;
  const int first_row = thread / 32 * kTiles * 16, dim = static_cast<int>(p.dim);
  const int steps = (tile.last - tile.first + kStepBlocks - 1) / kStepBlocks;

  if (thread < kRows)
    shared.limits[thread] = thread < tile.rows ? row_limit(p, work.limits, tile, thread) : 0;
  if (thread < 2 * kStepBlocks) {
    shared.keys[thread] = resolve(p, work, tile, kv_head, tile.first + thread);
  }
  block_barrier();

  // Load i is K (even) or V (odd) of step i / 2. Every call closes one group of copies, so that waiting for
  // all but the last kSlots - 2 groups means: the load that is needed next is here.
  const auto start_load = [&](int load) {
    if (load < 2 * steps) {
      const bool values = load % 2;
      const auto* pool = reinterpret_cast<const std::uint16_t*>(values ? p.v : p.k);
      load_keys<kDim>(shared.slot(load), pool, values ? p.v_row : p.k_row, shared.list(load / 2), values,
                      dim);
    }
    copy_async_commit();
  };
  const std::uint32_t q = shared_address(shared.q);
  if (steps > 0) load_queries<kDim, kRows>(p, tile, kv_head, q);
#pragma unroll
  for (int load = 0; load < kSlots - 1; ++load) start_load(load);

  // Kept in shared memory: the loop over steps has no registers to spare.
  const std::int32_t* limits = shared.limits + first_row;
  int most = 0, fewest = tile.last;
  if (lane < kTiles * 16 && first_row + lane < tile.rows) most = fewest = limits[lane];
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other_most = shuffle_xor(most, distance), other_fewest = shuffle_xor(fewest, distance);
    most = most > other_most ? most : other_most;
    fewest = fewest < other_fewest ? fewest : other_fewest;
  }
  if (lane == 0) shared.sights[thread / 32] = {fewest, most};

  const float scale = p.scale * kLog2E;
  const std::uint32_t warp_q = q + first_row * kDim * 2;
  WarpState<kTiles, kDim> state;
  for (int step = 0; step < steps; ++step) {
    const Keys* keys = shared.list(step);
    const int block = tile.first + step * kStepBlocks;

    copy_async_wait<kSlots - 2>();
    block_barrier();
    start_load(2 * step + kSlots - 1);
    if (thread < kStepBlocks) {
      shared.list(step + 2)[thread] = resolve(p, work, tile, kv_head, block + 2 * kStepBlocks + thread);
    }
    const Sight sight = shared.sights[opaque(thread) / 32];
    const bool seen = block < sight.most;
    bool plain = scale > 0.0f && block + kStepBlocks <= sight.fewest;
#pragma unroll
    for (int j = 0; j < kStepBlocks; ++j) plain = plain && keys[j].rows == kKeyBlock;
    Weights<kTiles> weights;
    if (seen) {
      Scores<kTiles> s;
      compute_scores<T, kTiles, kDim>(warp_q, shared.slot(2 * step), opaque(lane), s);
      if (plain) {
        softmax<T, kTiles, kDim, false>(s, keys, scale, state, weights);
      } else {
        mask_scores<kTiles>(s, keys, limits, block, scale, opaque(lane));
        softmax<T, kTiles, kDim, true>(s, keys, scale, state, weights);
      }
    }

    copy_async_wait<kSlots - 2>();
    block_barrier();
    start_load(2 * step + kSlots);
    if (seen) {
      const std::uint32_t v = shared.slot(2 * step + 1);
      if (plain) {
        add_values<T, kTiles, kDim, false>(v, weights, limits, block, opaque(lane), state);
      } else {
        add_values<T, kTiles, kDim, true>(v, weights, limits, block, opaque(lane), state);
      }
    }
  }
  write_rows<T, kTiles, kDim>(p, work, first_row, lane, shared.q + first_row * kDim * 2, state);
}
#endif

#if ARDIFF_LAUNCHERS
namespace {

constexpr std::int64_t kMaxGridY = 65535;  // the hardware's limit of blocks in y: kv heads

bool launchable(const FrameAttentionParams& p, const AttentionWork& work) {
  return (work.tile_rows == 64 || work.tile_rows == 128) && work.error != nullptr && p.kv_heads >= 1 &&
         p.kv_heads <= kMaxGridY && p.heads % p.kv_heads == 0 && p.dim >= 1;
}

Extent attention_grid(std::int32_t items, const FrameAttentionParams& p) {
  return {static_cast<unsigned>(items), static_cast<unsigned>(p.kv_heads)};
}

template <class T, int kDim>
Status launch_tiles(const FrameAttentionParams& p, const AttentionWork& work, Stream stream) {
  const Extent grid = attention_grid(work.num_tiles, p);
  if (work.tile_rows == 128) {
    return launch_with_shared<frame_attention_kernel<T, kDim, 128>>(
        grid, {kThreads}, SharedBytes<kDim, 128>::kAll, stream, p, work);
  }
  return launch_with_shared<frame_attention_kernel<T, kDim, 64>>(
      grid, {kThreads}, SharedBytes<kDim, 64>::kAll, stream, p, work);
}

// The tiles of a storage type; float by its own kernel.
template <class T>
struct Tiles {
  static Status launch(const FrameAttentionParams& p, const AttentionWork& work, Stream stream) {
    const auto address = [](const float* x) { return reinterpret_cast<std::uintptr_t>(x); };
    const std::uintptr_t addresses = address(p.q) | address(p.k) | address(p.v) | address(p.o);
    const std::int64_t strides =
        p.dim | p.q_token | p.q_head | p.k_page | p.k_head | p.k_row | p.v_page | p.v_head | p.v_row;
    if (p.dim > kMostColumns || addresses % 16 != 0 || strides % 8 != 0) return kInvalidValue;
    if (p.dim <= 64) return launch_tiles<T, 64>(p, work, stream);
    if (p.dim <= 80) return launch_tiles<T, 80>(p, work, stream);
    if (p.dim <= 96) return launch_tiles<T, 96>(p, work, stream);
    return launch_tiles<T, 128>(p, work, stream);
  }
};

template <>
struct Tiles<float> {
  static Status launch(const FrameAttentionParams& p, const AttentionWork& work, Stream stream) {
    if (p.dim > 32 * kFloatColumns) return kInvalidValue;
    return cuda::launch<frame_attention_float_kernel>(attention_grid(work.num_tiles, p), {kThreads}, stream,
                                                      p, work);
  }
};

}  // namespace

// The pointers of p are to values of type T. kInvalidValue where the assumptions above do not hold.
template <class T>
Status frame_attention(const FrameAttentionParams& p, const AttentionWork& work, Stream stream) {
  if (!launchable(p, work)) return kInvalidValue;
  if (work.num_tiles == 0) return kSuccess;
  const Status status = Tiles<T>::launch(p, work, stream);
  if (status != kSuccess || work.num_merges == 0) return status;
  return launch<frame_attention_merge_kernel<T>>(attention_grid(work.num_merges, p), {kThreads}, stream, p,
                                                 work);
}

template Status frame_attention<float>(const FrameAttentionParams&, const AttentionWork&, Stream);
template Status frame_attention<BFloat16>(const FrameAttentionParams&, const AttentionWork&, Stream);
template Status frame_attention<Float16>(const FrameAttentionParams&, const AttentionWork&, Stream);
#endif

}  // namespace ardiff::cuda
