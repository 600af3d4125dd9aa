// SPDX-License-Identifier: Apache-2.0
// Rotary position (Su et al. 2021), interleaved pairs: (z[2j], z[2j+1]) turned by position * frequency[j].
#pragma once

#include "integers.h"
#include "scalar.h"

namespace ardiff {

// The angle position * frequency, rounded once to double, in turns within [-1/2, 1/2]. Dividing by 2 pi in
// two words keeps the reduction exact to a float ulp for every position below 2^31.
ARDIFF_HD inline float rope_turns(std::int64_t position, double frequency) {
  constexpr double kInverse = 0.15915494309189535, kInverseLow = -9.8393383375912430e-18;  // 1 / (2 pi)
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding and subtracting it rounds to an integer
  const double angle = static_cast<double>(position) * frequency;
  const double turns = angle * kInverse;
  const double low = fma(angle, kInverse, -turns) + angle * kInverseLow;
  const double whole = (turns + kRound) - kRound;
  return static_cast<float>((turns - whole) + low);
}

// One coordinate of a rotated pair: (self, other) is (z[2j], z[2j+1]) with -sin, or (z[2j+1], z[2j]) with
// +sin.
template <class V>
ARDIFF_HD inline V rotated(V self, V cosine, V other, V signed_sine) {
  return fma(self, cosine, other * signed_sine);
}

}  // namespace ardiff
