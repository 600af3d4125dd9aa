// SPDX-License-Identifier: Apache-2.0
// Copies pages, and rotates the K of pages, in all layers of a pool [layers, P, H, R, d]; a page is dense.
//
//   copy_pages    k[:, dst] = k[:, src], v[:, dst] = v[:, src], in bytes: any dtype, bit for bit
//   rotate_pages  (k[2j], k[2j+1]) turned by deltas[i] * frequencies[j], from the pages themselves or a
//   source
//
// Bytes: every value is read once and written once. Floor at 3.35 TB/s for one frame of 1560 tokens of 12
// heads x 128 in 30 layers, bfloat16: a copy moves 2 x 2 x 144 MB, 172 us, a rotation half of that.
//
// Grid: x over the packs of a page, y over pages, z over layers. The angles of a page are computed once per
// block, which turns kPacksPerThread packs per thread with them. A page outside the pool sets kBadPage and is
// neither read nor written. Assumes distinct pages, and at most 65535 layers.
#include "ardiff/device_error.h"
#include "ardiff/pages.h"
#include "launch.cuh"
#include "rope.cuh"

namespace ardiff::cuda {

constexpr int kPageThreads = 256;
constexpr int kPacksPerThread = 8;
constexpr std::int64_t kMaxPages = 65535;  // in y; more are walked in a loop

__global__ void copy_pages_kernel(CopyPagesParamsOf<std::uint8_t> p, std::int32_t* error);
template <class T>
__global__ void rotate_pages_kernel(RotatePagesParamsOf<T> p, std::int32_t* error);

#if ARDIFF_KERNELS
__global__ void __launch_bounds__(kPageThreads)
    copy_pages_kernel(CopyPagesParamsOf<std::uint8_t> p, std::int32_t* error) {
  constexpr int bytes = kPack<std::uint8_t>;
  const std::int64_t layer = static_cast<std::int64_t>(blockIdx.z) * p.layer_stride;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kPageThreads + threadIdx.x) * bytes;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kPageThreads * bytes;
  for (std::int64_t i = blockIdx.y; i < p.count; i += gridDim.y) {
    const std::int64_t src = p.src[i], dst = p.dst[i];
    if (src < 0 || src >= p.pool_pages || dst < 0 || dst >= p.pool_pages) {
      if (threadIdx.x == 0) atomicOr(error, kBadPage);
      continue;
    }
    const std::int64_t from = layer + src * p.page_stride, to = layer + dst * p.page_stride;
    for (std::int64_t begin = first; begin < p.page_elements; begin += step) {
      const int n = values_left(begin, p.page_elements, bytes);
      copy_pack(p.k_pages + from + begin, p.k_pages + to + begin, n);
      copy_pack(p.v_pages + from + begin, p.v_pages + to + begin, n);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kPageThreads)
    rotate_pages_kernel(RotatePagesParamsOf<T> p, std::int32_t* error) {
  __shared__ Angles angles;
  const int dim = static_cast<int>(p.dim), row_packs = (dim + kPack<T> - 1) / kPack<T>;
  const std::int64_t packs = p.rows * row_packs, layer = blockIdx.z;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kPageThreads + threadIdx.x;
  for (std::int64_t i = blockIdx.y; i < p.count; i += gridDim.y) {
    const std::int64_t page = p.pages[i];
    if (page < 0 || page >= p.pool_pages) {
      if (threadIdx.x == 0) atomicOr(error, kBadPage);
      continue;  // the whole block does, so the barriers below stay matched
    }
    __syncthreads();  // the angles of the page before are no longer read
    compute_angles(p.deltas + i, p.frequencies, 1, dim, angles);
    __syncthreads();
    T* out = p.k_pages + layer * p.layer_stride + page * p.page_stride;
    const T* in = p.source ? p.source + layer * p.source_layer_stride + i * p.source_page_stride : out;
    for (std::int64_t pack = first; pack < packs;
         pack += static_cast<std::int64_t>(gridDim.x) * kPageThreads) {
      const int begin = static_cast<int>(pack % row_packs) * kPack<T>;
      const int n = values_left(begin, dim, kPack<T>);
      const std::int64_t offset = pack / row_packs * dim + begin;
      float z[kPack<T>];
      load_pack(in + offset, n, z);
      rotate_pack(z, begin, dim, angles);
      store_pack(out + offset, n, z);
    }
  }
}
#endif

#if ARDIFF_LAUNCHERS
inline Extent page_grid(std::int64_t packs, std::int64_t count, std::int64_t layers) {
  const std::int64_t per_block = kPageThreads * kPacksPerThread;
  return {static_cast<unsigned>((packs + per_block - 1) / per_block),
          static_cast<unsigned>(count < kMaxPages ? count : kMaxPages), static_cast<unsigned>(layers)};
}

Status copy_pages(const CopyPagesParamsOf<std::uint8_t>& p, std::int32_t* error, Stream stream) {
  if (p.count == 0 || p.layers == 0 || p.page_elements == 0) return kSuccess;
  const std::int64_t packs = (p.page_elements + kPack<std::uint8_t> - 1) / kPack<std::uint8_t>;
  return launch<copy_pages_kernel>(page_grid(packs, p.count, p.layers), {kPageThreads}, stream, p, error);
}

template <class T>
Status rotate_pages(const RotatePagesParamsOf<T>& p, std::int32_t* error, Stream stream) {
  if (p.count == 0 || p.layers == 0 || p.rows == 0) return kSuccess;
  if (p.dim > kMaxHeadDim) return kInvalidValue;
  const std::int64_t packs = p.rows * ((p.dim + kPack<T> - 1) / kPack<T>);
  return launch<rotate_pages_kernel<T>>(page_grid(packs, p.count, p.layers), {kPageThreads}, stream, p,
                                        error);
}

template Status rotate_pages(const RotatePagesParamsOf<float>&, std::int32_t*, Stream);
template Status rotate_pages(const RotatePagesParamsOf<BFloat16>&, std::int32_t*, Stream);
template Status rotate_pages(const RotatePagesParamsOf<Float16>&, std::int32_t*, Stream);
#endif

}  // namespace ardiff::cuda
