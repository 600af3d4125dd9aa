// SPDX-License-Identifier: Apache-2.0
// Frame attention, forward, for Hopper (sm_90a): o = softmax(scale q k^T + bias) v and lse, over page lists,
// following the schedule of ardiff/attention_stream_k.h.
//
//   q [T, H, D], k and v pages [P, Hkv, R, D] -> o [T, H, D], lse [T, H]; bfloat16 or float16, D <= 128
//
// Cost: 4 T H K D FLOPs for K visible keys and one exp2 per logit. Bytes: q and o once; K and V once per tile
// of 128 rows and kv head, from the L2 cache (4.7 TB/s at 600 TFLOP/s). Floor on an H100 SXM (990 TFLOP/s
// dense bfloat16), 12 heads, D = 128, 4680 queries, 32760 keys: 942 GFLOP, 0.95 ms. Not yet run on a GPU.
//
// Grid: one block per multiprocessor ("worker"), which walks its items. Three warpgroups of four warps:
//
//   0  warp 0: producer, warp 1: scrubber (frame_attention_load.cuh), warps 2 and 3: nothing
//   1  consumer of query rows 0 .. 63 of the tile                     (frame_attention_consume.cuh)
//   2  consumer of rows 64 .. 127
//
// K and V of a step are two loads into a ring of six slots. Of each slot, `full` completes when the load is
// there (the copy engine counts its bytes; for a V that needs scrubbing, when the scrubber is done), and
// `empty` when nine warps have let go of it: eight that compute, and the scrubber. Everybody walks the same
// items and steps, so a step's number says slot and parity of each wait; nothing else is communicated.
//
// Assumes: D, and all strides, are multiples of 8; q, k, v, o are 16-byte aligned; block_rows divides the
// page rows and is 112 or a divisor of 128 (checked by the launcher); the schedule was built for this table.
// Page ids are checked here: one out of range is not seen and sets kBadView.
#include "ardiff/frame_attention.h"
#include "ardiff/storage.h"
#include "cuda/frame_attention_sizes.h"
#include "cuda/launch.cuh"
#include "cuda/sm90/frame_attention_sizes.h"
#include "cuda/sm90/tensor_map.cuh"
#include "cuda/tensor_map.h"
#if ARDIFF_KERNELS
#include "cuda/frame_attention_merge.cuh"
#include "cuda/sm90/frame_attention_consume.cuh"
#include "cuda/sm90/frame_attention_load.cuh"
#endif

namespace ardiff::cuda {

template <class T, int kDim, int kKeys>
__global__ void frame_attention_sm90_kernel(const __grid_constant__ TensorMap k_map,
                                            const __grid_constant__ TensorMap v_map,
                                            const FrameAttentionParams p, const StreamKWork work);
template <class T>
__global__ void frame_attention_sm90_merge_kernel(const FrameAttentionParams p, const StreamKWork work);

#if ARDIFF_KERNELS
template <class T, int kDim, int kKeys>
__global__ void __launch_bounds__(kStreamThreads, 1)
    frame_attention_sm90_kernel(const __grid_constant__ TensorMap k_map,
                                const __grid_constant__ TensorMap v_map, const FrameAttentionParams p,
                                const StreamKWork work) {
  using Memory = StreamMemory<kDim, kKeys>;
  const Memory shared(shared_memory());
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < Memory::kSlots; ++slot) {
      mbarrier_init(shared.full(slot), 1);
      mbarrier_init(shared.empty(slot), kConsumers * 4 + 1);
    }
    for (int scrub = 0; scrub < Memory::kScrubs; ++scrub) mbarrier_init(shared.landed(scrub), 1);
    mbarrier_init_fence();
    fence_async();
  }
  block_barrier();
  if (threadIdx.x < kGroupThreads) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x < 32) {
      produce<kDim, kKeys>(shared, k_map, v_map, p, work);
    } else if (threadIdx.x < 64) {
      scrub<T, kDim, kKeys>(shared, work);
    }
  } else {
    take_registers<kConsumerRegisters>();
    consume<T, kDim, kKeys>(shared, p, work);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    frame_attention_sm90_merge_kernel(const FrameAttentionParams p, const StreamKWork work) {
  const StreamKMerge at = work.merges[blockIdx.x];
  merge_rows<T>(p, at.merge, at.kv_head, work.partial_o, work.partial_lse,
                std::int64_t{at.merge.part} * kStreamRows, kStreamRows);
}
#endif

#if ARDIFF_LAUNCHERS
namespace {

bool launchable(const FrameAttentionParams& p, const StreamKWork& work) {
  const auto address = [](const float* x) { return reinterpret_cast<std::uintptr_t>(x); };
  const std::uintptr_t addresses = address(p.q) | address(p.k) | address(p.v) | address(p.o);
  const std::int64_t strides =
      p.dim | p.q_token | p.q_head | p.k_page | p.k_head | p.k_row | p.v_page | p.v_head | p.v_row;
  const std::int64_t rows = work.block_rows;
  return work.error != nullptr && p.kv_heads >= 1 && p.heads % p.kv_heads == 0 && p.dim >= 1 &&
         p.dim <= kMostColumns && addresses % 16 == 0 && strides % 8 == 0 && rows >= 16 &&
         (rows == 112 || 128 % rows == 0) && p.page_rows % rows == 0;
}

template <class T, int kDim, int kKeys>
Status launch_workers(const FrameAttentionParams& p, const StreamKWork& work, Stream stream) {
  TensorMap k_map, v_map;
  Status status = encode(k_map, page_boxes<T>(p.k, p, {p.k_page, p.k_head, p.k_row}, work.block_rows));
  if (status != kSuccess) return status;
  status = encode(v_map, page_boxes<T>(p.v, p, {p.v_page, p.v_head, p.v_row}, work.block_rows));
  if (status != kSuccess) return status;
  return launch_with_shared<frame_attention_sm90_kernel<T, kDim, kKeys>>(
      {static_cast<unsigned>(work.num_workers)}, {kStreamThreads}, StreamSizes<kDim, kKeys>::kBytes, stream,
      k_map, v_map, p, work);
}

template <class T, int kDim>
Status launch_keys(const FrameAttentionParams& p, const StreamKWork& work, Stream stream) {
  return work.block_rows == 112 ? launch_workers<T, kDim, 112>(p, work, stream)
                                : launch_workers<T, kDim, 128>(p, work, stream);
}

template <class T>
Status launch_dim(const FrameAttentionParams& p, const StreamKWork& work, Stream stream) {
  if (p.dim <= 64) return launch_keys<T, 64>(p, work, stream);
  if (p.dim <= 80) return launch_keys<T, 80>(p, work, stream);
  if (p.dim <= 96) return launch_keys<T, 96>(p, work, stream);
  return launch_keys<T, 128>(p, work, stream);
}

}  // namespace

// The pointers of p are to values of type T. kInvalidValue where the assumptions above do not hold.
template <class T>
Status frame_attention_sm90(const FrameAttentionParams& p, const StreamKWork& work, Stream stream) {
  if (!launchable(p, work)) return kInvalidValue;
  const Status status = launch_dim<T>(p, work, stream);
  if (status != kSuccess || work.num_merges == 0) return status;
  return launch<frame_attention_sm90_merge_kernel<T>>({static_cast<unsigned>(work.num_merges)}, {kThreads},
                                                      stream, p, work);
}

template Status frame_attention_sm90<BFloat16>(const FrameAttentionParams&, const StreamKWork&, Stream);
template Status frame_attention_sm90<Float16>(const FrameAttentionParams&, const StreamKWork&, Stream);
#endif

}  // namespace ardiff::cuda
