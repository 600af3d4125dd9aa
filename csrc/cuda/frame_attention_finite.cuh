// SPDX-License-Identifier: Apache-2.0
// Values of V that are not finite, in 16 bits.
#pragma once

#include "ardiff/storage.h"

namespace ardiff::cuda {

template <class T>
constexpr std::uint32_t kExponent = 0;
template <>
constexpr std::uint32_t kExponent<BFloat16> = 0x7F80;
template <>
constexpr std::uint32_t kExponent<Float16> = 0x7C00;

// Replaces infinities and NaNs among two 16-bit values by 0; says whether there were any.
template <class T>
__device__ inline bool remove_non_finite(std::uint32_t& both) {
  constexpr std::uint32_t kLow = kExponent<T>, kHigh = kLow << 16;
  const bool low = (both & kLow) == kLow, high = (both & kHigh) == kHigh;
  if (low) both &= 0xFFFF0000u;
  if (high) both &= 0x0000FFFFu;
  return low || high;
}

}  // namespace ardiff::cuda
