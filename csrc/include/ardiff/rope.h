// SPDX-License-Identifier: Apache-2.0
// Rotary position (Su et al. 2021), interleaved pairs: (z[2j], z[2j+1]) turned by the
// angle sum over axes a of position[a] * frequency[a][j]: one axis for sequences; time, height and width for
// video, each of them with frequencies for its own pairs and 0 for the others.
#pragma once

#include "integers.h"
#include "scalar.h"

namespace ardiff {

// position: [axes]; frequencies: [axes, pairs].
ARDIFF_HD inline double rope_angle(const std::int64_t* position, const double* frequencies, std::int64_t axes,
                                   std::int64_t pairs, std::int64_t j) {
  double angle = static_cast<double>(position[0]) * frequencies[j];
  for (std::int64_t a = 1; a < axes; ++a) {
    angle = fma(static_cast<double>(position[a]), frequencies[a * pairs + j], angle);
  }
  return angle;
}

// An angle in turns within [-1/2, 1/2]. Dividing by 2 pi in two words keeps the reduction exact to a float
// ulp for every position below 2^31.
ARDIFF_HD inline float rope_turns(double angle) {
  constexpr double kInverse = 0.15915494309189535, kInverseLow = -9.8393383375912430e-18;  // 1 / (2 pi)
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding and subtracting it rounds to an integer
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
