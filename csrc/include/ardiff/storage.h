// SPDX-License-Identifier: Apache-2.0
// What tensors are stored as: float, BFloat16 or Float16. Arithmetic is always float: `widened` reads a
// value, `stored<T>` rounds one to nearest even. The half types are bits only, so that no CUDA header is
// needed, and the host converts as the device does.
#pragma once

#include "hd.h"
#include "integers.h"

namespace ardiff {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

ARDIFF_HD inline float float_of_bits(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

ARDIFF_HD inline std::uint32_t bits_of_float(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

ARDIFF_HD inline float widened(float value) { return value; }

ARDIFF_HD inline float widened(BFloat16 value) {
  return float_of_bits(static_cast<std::uint32_t>(value.bits) << 16);
}

ARDIFF_HD inline float widened(Float16 value) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  const std::uint32_t sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7FFFu;
  if (rest >= 0x7C00u) return float_of_bits(sign | 0x7F800000u | (rest & 0x3FFu) << 13);  // infinity, NaN
  // Exponents of half start 112 below those of float; the product also normalises subnormal numbers.
  return float_of_bits(sign | bits_of_float(float_of_bits(rest << 13) * 5.192296858534828e+33f));  // 2^112
#endif
}

template <class T>
ARDIFF_HD inline T stored(float value);

template <>
ARDIFF_HD inline float stored<float>(float value) {
  return value;
}

template <>
ARDIFF_HD inline BFloat16 stored<BFloat16>(float value) {
#if defined(__CUDA_ARCH__)
  BFloat16 narrow;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
#else
  const std::uint32_t bits = bits_of_float(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {0x7FFF};  // rounding could carry a NaN into infinity
  return {static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};
#endif
}

template <>
ARDIFF_HD inline Float16 stored<Float16>(float value) {
#if defined(__CUDA_ARCH__)
  Float16 narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
#else
  const std::uint32_t bits = bits_of_float(value), rest = bits & 0x7FFFFFFFu;
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  if (rest > 0x7F800000u) return {0x7FFF};
  if (rest >= 0x477FF000u) return {static_cast<std::uint16_t>(sign | 0x7C00u)};  // 65520 and above: infinity
  if (rest < 0x38800000u) {  // subnormal: adding 2^-1 leaves the rounded mantissa in the last bits
    return {static_cast<std::uint16_t>(sign | (bits_of_float(float_of_bits(rest) + 0.5f) - 0x3F000000u))};
  }
  return {static_cast<std::uint16_t>(sign | ((rest - 0x38000000u + 0xFFFu + (rest >> 13 & 1u)) >> 13))};
#endif
}

}  // namespace ardiff
