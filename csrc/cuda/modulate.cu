// SPDX-License-Identifier: Apache-2.0
// Normalisation with a shift and scale row per frame: y = n (1 + scale[id]) + shift[id], n = norm(x).
//
//   x, y, normed [tokens, width]; shift, scale [rows, width], rows strided; frame_ids int32 [tokens]
//
// Bytes: x is read once and y (and normed) written once; the table rows stay in L2. About 8 FLOPs per
// element. Floor at 3.35 TB/s for 4680 tokens x 1536 in bfloat16: 28.8 MB, 8.6 us.
//
// One block per token, one 16-byte pack per thread and step; a row stays in registers between its statistics
// and its result, so mean and variance are the exact two-pass ones. Assumes width <= kModulateMaxBytes (the
// launcher refuses more). An id outside the table gives y = NaN and sets kBadFrameId.
#include "ardiff/device_error.h"
#include "ardiff/modulate.h"
#include "launch.cuh"
#include "packed.cuh"
#include "reduce.cuh"

namespace ardiff::cuda {

constexpr int kModulateThreads = 512;  // at most; more would leave fewer than 128 registers per thread
constexpr int kLongRowPacks = 4;       // per thread: 32 registers of half values
constexpr int kModulateMaxBytes = kModulateThreads * kLongRowPacks * 16;

// packs: of a row, per thread. 1 needs half the registers of 4, and so keeps twice the rows in flight.
template <class T, int packs>
__global__ void modulate_kernel(ModulateParamsOf<T> p, std::int32_t* error);

#if ARDIFF_KERNELS
template <class T, int packs>
__global__ void __launch_bounds__(kModulateThreads)
    modulate_kernel(ModulateParamsOf<T> p, std::int32_t* error) {
  __shared__ float sums[kMaxWarps], squares[kMaxWarps];
  const std::int64_t offset = static_cast<std::int64_t>(blockIdx.x) * p.width, id = p.frame_ids[blockIdx.x];
  const int width = static_cast<int>(p.width), step = static_cast<int>(blockDim.x) * kPack<T>;
  const int first = static_cast<int>(threadIdx.x) * kPack<T>;
  const bool known = id >= 0 && id < p.rows;
  if (!known && threadIdx.x == 0) atomicOr(error, kBadFrameId);

  float x[packs][kPack<T>] = {};
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    const int begin = first + k * step;
    if (begin < width) load_pack(p.x + offset + begin, values_left(begin, width, kPack<T>), x[k]);
  }

  float mean = 0.0f, reciprocal = 1.0f;
  const float share = 1.0f / static_cast<float>(width);
  if (p.norm == RowNorm::layer) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
#pragma unroll
      for (int i = 0; i < kPack<T>; ++i) sum += x[k][i];  // 0 beyond the row
    }
    mean = block_sum(sum, sums) * share;
  }
  if (p.norm != RowNorm::none) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
#pragma unroll
      for (int i = 0; i < kPack<T>; ++i) {
        const float d = first + k * step + i < width ? x[k][i] - mean : 0.0f;
        sum = fma(d, d, sum);
      }
    }
    reciprocal = 1.0f / sqrtf(fma(block_sum(sum, squares), share, p.eps));
  }

#pragma unroll
  for (int k = 0; k < packs; ++k) {
    const int begin = first + k * step;
    if (begin >= width) return;
    const int n = values_left(begin, width, kPack<T>);
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) x[k][i] = normalised(x[k][i], mean, reciprocal);
    if (p.normed) store_pack(p.normed + offset + begin, n, x[k]);
    float scale[kPack<T>], shift[kPack<T>];
    if (known) {
      load_pack(p.scale + id * p.scale_stride + begin, n, scale);
      load_pack(p.shift + id * p.shift_stride + begin, n, shift);
    }
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
      x[k][i] = known ? modulated(x[k][i], 1.0f + scale[i], shift[i]) : float_of_bits(0x7FC00000u);
    }
    store_pack(p.y + offset + begin, n, x[k]);
  }
}
#endif

#if ARDIFF_LAUNCHERS
template <class T>
Status modulate(const ModulateParamsOf<T>& p, std::int32_t* error, Stream stream) {
  if (p.tokens == 0 || p.width == 0) return kSuccess;
  if (p.width * static_cast<std::int64_t>(sizeof(T)) > kModulateMaxBytes) return kInvalidValue;
  const std::int64_t packs = (p.width + kPack<T> - 1) / kPack<T>;
  const bool long_row = packs > kModulateThreads;
  const std::int64_t wanted = long_row ? (packs + kLongRowPacks - 1) / kLongRowPacks : packs;
  const Extent grid{static_cast<unsigned>(p.tokens)};
  const Extent block{static_cast<unsigned>((wanted + kWarp - 1) / kWarp * kWarp)};
  return long_row ? launch<modulate_kernel<T, kLongRowPacks>>(grid, block, stream, p, error)
                  : launch<modulate_kernel<T, 1>>(grid, block, stream, p, error);
}

template Status modulate(const ModulateParamsOf<float>&, std::int32_t*, Stream);
template Status modulate(const ModulateParamsOf<BFloat16>&, std::int32_t*, Stream);
template Status modulate(const ModulateParamsOf<Float16>&, std::int32_t*, Stream);
#endif

}  // namespace ardiff::cuda
