// SPDX-License-Identifier: Apache-2.0
// Everything between the QKV projection and attention over pages, in one pass: bias, QK-norm, RoPE, page
// write.
//
//   qkv [tokens, (heads + 2 kv_heads) dim] -> q [tokens, heads, dim]; K and V to row slots[t] of the pages
//   [pages, kv_heads, page_rows, dim]. Norm per head (layer, rms) or over all heads together (rms_full).
//
// Bytes: a row of qkv is read once and written once, as q and in the pages. About 15 FLOPs per value. Floor
// at 3.35 TB/s for 4680 tokens of 12 heads x 128 in bfloat16: 86.3 MB, 25.7 us.
//
// One block of 256 threads per token. Its sines are computed once, in float64 where the angle is reduced, and
// serve all heads. A head is shared by `lanes` neighbouring lanes (a power of two that covers its packs), so
// its statistics are a shuffle tree inside a warp; only rms_full needs the whole block. V is copied bit for
// bit unless there is a bias. A slot outside the pool sets kBadSlot and writes nothing; -1 writes nothing.
// Assumes dim <= kLongHeadPacks * 32 packs (the launcher refuses more) and distinct slots.
#include "ardiff/device_error.h"
#include "ardiff/modulate.h"
#include "ardiff/norm_rope_write.h"
#include "launch.cuh"
#include "reduce.cuh"
#include "rope.cuh"

namespace ardiff::cuda {

constexpr int kNormRopeThreads = 256;
constexpr int kLongHeadPacks = 2;  // of one head, per lane: dimensions up to 256 in float, 512 in half

template <class T, int packs>
__global__ void norm_rope_write_kernel(NormRopeWriteParamsOf<T> p, int lanes, std::int32_t* error);

#if ARDIFF_KERNELS
// The lanes that share a head, and what one thread is among them.
struct HeadLanes {
  int lane, lanes, group, groups;
};

// One of q and k: its columns of the row, what normalises them.
template <class T>
struct HeadPart {
  const T *row, *row_bias, *weight, *bias;
  int heads;
};

template <class T, int packs>
__device__ inline void load_head(const HeadPart<T>& part, int head, int dim, const HeadLanes& l, bool active,
                                 float (&z)[packs][kPack<T>]) {
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    const int begin = (l.lane + k * l.lanes) * kPack<T>;
    const int n = active && begin < dim ? values_left(begin, dim, kPack<T>) : 0;
    load_pack(part.row + head * dim + begin, n, z[k]);
    if (part.row_bias) {
      float bias[kPack<T>];
      load_pack(part.row_bias + head * dim + begin, n, bias);
#pragma unroll
      for (int i = 0; i < kPack<T>; ++i) z[k][i] += bias[i];
    }
  }
}

// Sum over the lanes of a head of (z - mean)^2; values beyond the head do not count.
template <class T, int packs>
__device__ inline float squares_of(const float (&z)[packs][kPack<T>], float mean, int dim,
                                   const HeadLanes& l) {
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < packs; ++k) {
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
      const float d = (l.lane + k * l.lanes) * kPack<T> + i < dim ? z[k][i] - mean : 0.0f;
      sum = fma(d, d, sum);
    }
  }
  return group_sum(sum, l.lanes);
}

// The reciprocal root over all heads of a part (rms_full). `partial` as in block_sum.
template <class T, int packs>
__device__ inline float full_reciprocal(const HeadPart<T>& part, int dim, float eps, const HeadLanes& l,
                                        float* partial) {
  float sum = 0.0f;
  for (int base = 0; base < part.heads; base += l.groups) {
    float z[packs][kPack<T>];
    load_head<T, packs>(part, base + l.group, dim, l, base + l.group < part.heads, z);
    const float squares = squares_of<T, packs>(z, 0.0f, dim, l);
    if (l.lane == 0) sum += squares;
  }
  const float width = static_cast<float>(part.heads) * static_cast<float>(dim);
  return 1.0f / sqrtf(fma(block_sum(sum, partial), 1.0f / width, eps));
}

// Norm and rotation of all heads of a part; head h goes to out + h * out_stride. out null: nothing is
// written.
template <class T, int packs>
__device__ inline void norm_rope(const NormRopeWriteParamsOf<T>& p, const HeadPart<T>& part,
                                 const HeadLanes& l, float full, const Angles& angles, T* out,
                                 std::int64_t out_stride) {
  const int dim = static_cast<int>(p.dim);
  const float share = 1.0f / static_cast<float>(dim);
  for (int base = 0; base < part.heads; base += l.groups) {  // all lanes of a warp stay for the shuffles
    const int head = base + l.group;
    const bool active = head < part.heads && out != nullptr;
    float z[packs][kPack<T>];
    load_head<T, packs>(part, head, dim, l, active, z);
    float mean = 0.0f, reciprocal = full;
    if (p.norm == HeadNorm::layer) {
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k < packs; ++k) {
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) sum += z[k][i];
      }
      mean = group_sum(sum, l.lanes) * share;
    }
    if (p.norm == HeadNorm::layer || p.norm == HeadNorm::rms) {
      reciprocal = 1.0f / sqrtf(fma(squares_of<T, packs>(z, mean, dim, l), share, p.eps));
    }
    if (!active) continue;
    const int weight_first = p.norm == HeadNorm::rms_full ? head * dim : 0;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int begin = (l.lane + k * l.lanes) * kPack<T>;
      if (begin >= dim) break;
      const int n = values_left(begin, dim, kPack<T>);
      float affine[kPack<T>];
#pragma unroll
      for (int i = 0; i < kPack<T>; ++i) z[k][i] = normalised(z[k][i], mean, reciprocal);
      if (part.weight) {
        load_pack(part.weight + weight_first + begin, n, affine);
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) z[k][i] *= affine[i];
      }
      if (part.bias) {
        load_pack(part.bias + weight_first + begin, n, affine);
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) z[k][i] += affine[i];
      }
      if (p.frequencies) rotate_pack(z[k], begin, dim, angles);
      store_pack(out + head * out_stride + begin, n, z[k]);
    }
  }
}

template <class T>
__device__ inline void write_values(const NormRopeWriteParamsOf<T>& p, const HeadLanes& l, const T* row,
                                    const T* row_bias, T* out) {
  const int dim = static_cast<int>(p.dim);
  for (int head = l.group; head < p.kv_heads; head += l.groups) {
    for (int begin = l.lane * kPack<T>; begin < dim; begin += l.lanes * kPack<T>) {
      const int n = values_left(begin, dim, kPack<T>), column = head * dim + begin;
      T* to = out + head * p.head_stride + begin;
      if (!row_bias) {
        copy_pack(row + column, to, n);
        continue;
      }
      float z[kPack<T>], bias[kPack<T>];
      load_pack(row + column, n, z);
      load_pack(row_bias + column, n, bias);
#pragma unroll
      for (int i = 0; i < kPack<T>; ++i) z[i] += bias[i];
      store_pack(to, n, z);
    }
  }
}

template <class T, int packs>
// Blocks per SM: room for 80 registers in the long form (left alone, ptxas stops at 64 on sm_80 and spills).
__global__ void __launch_bounds__(kNormRopeThreads, packs == 1 ? 5 : 3)
    norm_rope_write_kernel(NormRopeWriteParamsOf<T> p, int lanes, std::int32_t* error) {
  __shared__ Angles angles;
  __shared__ float q_partial[kMaxWarps], k_partial[kMaxWarps];
  const std::int64_t token = blockIdx.x, slot = p.slots[token];
  const int thread = static_cast<int>(threadIdx.x), dim = static_cast<int>(p.dim);
  const HeadLanes l{thread % lanes, lanes, thread / lanes, kNormRopeThreads / lanes};
  const bool inside = slot >= 0 && slot < p.pages * p.page_rows;
  if (!inside && slot != -1 && thread == 0) atomicOr(error, kBadSlot);

  const std::int64_t q_width = p.heads * p.dim, kv_width = p.kv_heads * p.dim;
  const T* row = p.qkv + token * (q_width + 2 * kv_width);
  const T *k_bias = p.qkv_bias ? p.qkv_bias + q_width : nullptr,
          *v_bias = k_bias ? k_bias + kv_width : nullptr;
  const HeadPart<T> q{row, p.qkv_bias, p.q_weight, p.q_bias, static_cast<int>(p.heads)};
  const HeadPart<T> k{row + q_width, k_bias, p.k_weight, p.k_bias, static_cast<int>(p.kv_heads)};
  if (p.frequencies) {
    compute_angles(p.positions + token * p.axes, p.frequencies, static_cast<int>(p.axes), dim, angles);
  }
  float q_full = 1.0f, k_full = 1.0f;
  if (p.norm == HeadNorm::rms_full) {
    q_full = full_reciprocal<T, packs>(q, dim, p.eps, l, q_partial);
    k_full = full_reciprocal<T, packs>(k, dim, p.eps, l, k_partial);
  }
  __syncthreads();  // the angles are complete

  norm_rope<T, packs>(p, q, l, q_full, angles, p.q + token * q_width, p.dim);
  const std::int64_t page = inside ? slot / p.page_rows : 0, page_row = inside ? slot % p.page_rows : 0;
  const std::int64_t offset = page * p.page_stride + page_row * p.row_stride;
  if (!inside) return;
  norm_rope<T, packs>(p, k, l, k_full, angles, p.k_pages + offset, p.head_stride);
  write_values(p, l, row + q_width + kv_width, v_bias, p.v_pages + offset);
}
#endif

#if ARDIFF_LAUNCHERS
template <class T>
Status norm_rope_write(const NormRopeWriteParamsOf<T>& p, std::int32_t* error, Stream stream) {
  if (p.tokens == 0) return kSuccess;
  if (p.dim > kLongHeadPacks * kWarp * kPack<T>) return kInvalidValue;
  int lanes = 1;
  while (lanes < kWarp && lanes * kPack<T> < p.dim) lanes *= 2;
  const Extent grid{static_cast<unsigned>(p.tokens)}, block{kNormRopeThreads};
  return lanes * kPack<T> < p.dim
             ? launch<norm_rope_write_kernel<T, kLongHeadPacks>>(grid, block, stream, p, lanes, error)
             : launch<norm_rope_write_kernel<T, 1>>(grid, block, stream, p, lanes, error);
}

template Status norm_rope_write(const NormRopeWriteParamsOf<float>&, std::int32_t*, Stream);
template Status norm_rope_write(const NormRopeWriteParamsOf<BFloat16>&, std::int32_t*, Stream);
template Status norm_rope_write(const NormRopeWriteParamsOf<Float16>&, std::int32_t*, Stream);
#endif

}  // namespace ardiff::cuda
