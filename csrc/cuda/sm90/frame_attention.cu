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
#include "cuda/frame_attention_merge.cuh"
#include "cuda/launch.cuh"
#include "cuda/sm90/frame_attention_consume.cuh"
#include "cuda/sm90/frame_attention_load.cuh"
#include "cuda/sm90/tensor_map.cuh"

namespace ardiff::cuda {

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

#define ARDIFF_FRAME_ATTENTION(T, kDim)                                                                  \
  template __global__ void frame_attention_sm90_kernel<T, kDim, 112>(const __grid_constant__ TensorMap,  \
                                                                     const __grid_constant__ TensorMap,  \
                                                                     FrameAttentionParams, StreamKWork); \
  template __global__ void frame_attention_sm90_kernel<T, kDim, 128>(const __grid_constant__ TensorMap,  \
                                                                     const __grid_constant__ TensorMap,  \
                                                                     FrameAttentionParams, StreamKWork);
ARDIFF_FRAME_ATTENTION(BFloat16, 64)
ARDIFF_FRAME_ATTENTION(BFloat16, 80)
ARDIFF_FRAME_ATTENTION(BFloat16, 96)
ARDIFF_FRAME_ATTENTION(BFloat16, 128)
ARDIFF_FRAME_ATTENTION(Float16, 64)
ARDIFF_FRAME_ATTENTION(Float16, 80)
ARDIFF_FRAME_ATTENTION(Float16, 96)
ARDIFF_FRAME_ATTENTION(Float16, 128)
#undef ARDIFF_FRAME_ATTENTION
template __global__ void frame_attention_sm90_merge_kernel<BFloat16>(FrameAttentionParams, StreamKWork);
template __global__ void frame_attention_sm90_merge_kernel<Float16>(FrameAttentionParams, StreamKWork);

#if !defined(__CUDACC_RTC__)
namespace {

template <class T>
constexpr CUtensorMapDataType kTensorType = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
template <>
constexpr CUtensorMapDataType kTensorType<Float16> = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;

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
cudaError_t launch_workers(const FrameAttentionParams& p, const StreamKWork& work, cudaStream_t stream) {
  TensorMap k_map, v_map;
  cudaError_t status =
      encode_pages(k_map, kTensorType<T>, p.k, p, {p.k_page, p.k_head, p.k_row}, work.block_rows);
  if (status != cudaSuccess) return status;
  status = encode_pages(v_map, kTensorType<T>, p.v, p, {p.v_page, p.v_head, p.v_row}, work.block_rows);
  if (status != cudaSuccess) return status;
  return launch_with_shared(frame_attention_sm90_kernel<T, kDim, kKeys>,
                            dim3(static_cast<unsigned>(work.num_workers)), dim3(kStreamThreads),
                            StreamMemory<kDim, kKeys>::kBytes, stream, k_map, v_map, p, work);
}

template <class T, int kDim>
cudaError_t launch_keys(const FrameAttentionParams& p, const StreamKWork& work, cudaStream_t stream) {
  return work.block_rows == 112 ? launch_workers<T, kDim, 112>(p, work, stream)
                                : launch_workers<T, kDim, 128>(p, work, stream);
}

template <class T>
cudaError_t launch_dim(const FrameAttentionParams& p, const StreamKWork& work, cudaStream_t stream) {
  if (p.dim <= 64) return launch_keys<T, 64>(p, work, stream);
  if (p.dim <= 80) return launch_keys<T, 80>(p, work, stream);
  if (p.dim <= 96) return launch_keys<T, 96>(p, work, stream);
  return launch_keys<T, 128>(p, work, stream);
}

}  // namespace

// The pointers of p are to values of type T. cudaErrorInvalidValue where the assumptions above do not hold.
template <class T>
cudaError_t frame_attention_sm90(const FrameAttentionParams& p, const StreamKWork& work,
                                 cudaStream_t stream) {
  if (!launchable(p, work)) return cudaErrorInvalidValue;
  const cudaError_t status = launch_dim<T>(p, work, stream);
  if (status != cudaSuccess || work.num_merges == 0) return status;
  return launch_with_shared(frame_attention_sm90_merge_kernel<T>,
                            dim3(static_cast<unsigned>(work.num_merges)), dim3(kThreads), 0, stream, p, work);
}

template cudaError_t frame_attention_sm90<BFloat16>(const FrameAttentionParams&, const StreamKWork&,
                                                    cudaStream_t);
template cudaError_t frame_attention_sm90<Float16>(const FrameAttentionParams&, const StreamKWork&,
                                                   cudaStream_t);
#endif

}  // namespace ardiff::cuda
