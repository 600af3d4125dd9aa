// SPDX-License-Identifier: Apache-2.0
// Access to tensors in packs of 16 bytes, the widest that one thread can load: 4 float or 8 half values, as
// float in registers.
//
// A pack at an aligned address is one access. A partial or misaligned one (a row of odd length, a view that
// starts anywhere) is read value by value: slower, never wrong. Both give the same values.
#pragma once

#include "ardiff/storage.h"
#include "compilers.h"

namespace ardiff::cuda {

template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

#if ARDIFF_KERNELS
__device__ inline bool aligned(const void* p) { return (reinterpret_cast<std::uintptr_t>(p) & 15u) == 0; }

__device__ inline int values_left(std::int64_t begin, std::int64_t end, int at_most) {
  return end - begin < at_most ? static_cast<int>(end - begin) : at_most;
}

// The first n values of out are p[0 .. n), the others 0.
template <class T>
__device__ inline void load_pack(const T* p, int n, float (&out)[kPack<T>]) {
  if (n == kPack<T> && aligned(p)) {
    const uint4 raw = *reinterpret_cast<const uint4*>(p);
    const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
      if constexpr (sizeof(T) == 4) {
        out[i] = float_of_bits(words[i]);
      } else {
        out[i] = widened(T{static_cast<std::uint16_t>(words[i / 2] >> (i % 2 * 16))});
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) out[i] = i < n ? widened(p[i]) : 0.0f;
}

template <class T>
__device__ inline void store_pack(T* p, int n, const float (&values)[kPack<T>]) {
  if (n == kPack<T> && aligned(p)) {
    std::uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
      if constexpr (sizeof(T) == 4) {
        words[i] = bits_of_float(values[i]);
      } else {
        words[i / 2] |= static_cast<std::uint32_t>(stored<T>(values[i]).bits) << (i % 2 * 16);
      }
    }
    *reinterpret_cast<uint4*>(p) = make_uint4(words[0], words[1], words[2], words[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) {
    if (i < n) p[i] = stored<T>(values[i]);
  }
}

// Bit for bit, NaN payloads included.
template <class T>
__device__ inline void copy_pack(const T* from, T* to, int n) {
  if (n == kPack<T> && aligned(from) && aligned(to)) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) {
    if (i < n) to[i] = from[i];
  }
}
#endif

}  // namespace ardiff::cuda
