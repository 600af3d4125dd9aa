// SPDX-License-Identifier: Apache-2.0
// Rows of the pool [layers, P, H, R, d] that become weighted sums of other rows: ardiff/pool_pages.h.
//
// Bytes: every source is read once, every target written once; ids and weights stay in L2. Floor at 3.35 TB/s
// for K of 1560 targets of 5 sources each, 12 heads x 128 in 30 layers, bfloat16: 863 MB, 258 us.
//
// Grid: x over (target, head, pack of 16 bytes), z over layers. Sums are float32, in the order of the
// sources. A row outside the pool sets kBadPage, and its target is left alone. Assumes that no target is a
// source or named twice, and at most 65535 layers.
#include "ardiff/device_error.h"
#include "ardiff/pool_pages.h"
#include "launch.cuh"
#include "packed.cuh"

namespace ardiff::cuda {

constexpr int kPoolThreads = 256;
constexpr std::int64_t kMaxPoolBlocks = 1 << 20;  // in x; more are walked in a loop

template <class T>
__global__ void pool_pages_kernel(PoolPagesParamsOf<T> p, std::int32_t* error);

#if ARDIFF_KERNELS
template <class T>
__global__ void __launch_bounds__(kPoolThreads)
    pool_pages_kernel(PoolPagesParamsOf<T> p, std::int32_t* error) {
  const std::int64_t packs = (p.dim + kPack<T> - 1) / kPack<T>, rows = p.pool_pages * p.page_rows;
  const std::int64_t layer = blockIdx.z, step = static_cast<std::int64_t>(gridDim.x) * kPoolThreads;
  T* pages = p.pages + layer * p.layer_stride;
  for (std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kPoolThreads + threadIdx.x;
       item < p.count * p.heads * packs; item += step) {
    const std::int64_t n = item / (p.heads * packs), head = item / packs % p.heads;
    const std::int64_t begin = item % packs * kPack<T>, target = p.targets[n];
    const std::int64_t* sources = p.sources + n * p.taps;
    bool known = target >= 0 && target < rows;
    int present = 0;
    for (std::int64_t j = 0; j < p.taps; ++j) {
      known = known && sources[j] >= -1 && sources[j] < rows;
      present += sources[j] >= 0;
    }
    if (!known) {
      atomicOr(error, kBadPage);
      continue;
    }
    const int lanes = values_left(begin, p.dim, kPack<T>);
    const std::int64_t place = head * p.page_rows * p.dim + begin;
    const float mean = present ? 1.0f / static_cast<float>(present) : 0.0f;
    float sum[kPack<T>] = {}, row[kPack<T>];
    for (std::int64_t j = 0; j < p.taps; ++j) {
      if (sources[j] < 0) continue;
      load_pack(pages + p.offset(sources[j]) + place, lanes, row);
      const float* weights =
          p.weights ? p.weights + layer * p.weight_stride + (j * p.heads + head) * p.dim + begin : nullptr;
#pragma unroll
      for (int i = 0; i < kPack<T>; ++i) {
        if (i < lanes) sum[i] = pooled(sum[i], weights ? weights[i] : mean, row[i]);
      }
    }
    store_pack(pages + p.offset(target) + place, lanes, sum);
  }
}
#endif

#if ARDIFF_LAUNCHERS
template <class T>
Status pool_pages(const PoolPagesParamsOf<T>& p, std::int32_t* error, Stream stream) {
  const std::int64_t items = p.count * p.heads * ((p.dim + kPack<T> - 1) / kPack<T>);
  if (items == 0 || p.layers == 0) return kSuccess;
  const std::int64_t blocks = (items + kPoolThreads - 1) / kPoolThreads;
  const Extent grid{static_cast<unsigned>(blocks < kMaxPoolBlocks ? blocks : kMaxPoolBlocks), 1,
                    static_cast<unsigned>(p.layers)};
  return launch<pool_pages_kernel<T>>(grid, {kPoolThreads}, stream, p, error);
}

template Status pool_pages(const PoolPagesParamsOf<float>&, std::int32_t*, Stream);
template Status pool_pages(const PoolPagesParamsOf<BFloat16>&, std::int32_t*, Stream);
template Status pool_pages(const PoolPagesParamsOf<Float16>&, std::int32_t*, Stream);
#endif

}  // namespace ardiff::cuda
