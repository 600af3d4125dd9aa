// SPDX-License-Identifier: Apache-2.0
// RoPE on vectors. The angles of one position are laid out to match the interleaved pairs:
// cosine[2j] = cosine[2j+1] = cos, sine[2j] = -sin, sine[2j+1] = +sin, so that z' = z * cosine + swap(z) *
// sine.
#pragma once

#include "ardiff/rope.h"
#include "simd_math.h"

namespace ardiff::cpu::ARDIFF_ISA {

struct Angles {
  float *cosine, *sine;  // [dim] each
};

// position: [axes]; frequencies: [axes, dim / 2].
ARDIFF_SIMD void compute_angles(const std::int64_t* position, const double* frequencies, std::int64_t axes,
                                std::int64_t dim, Angles out) {
  constexpr int W = 16;
  alignas(64) float turns[W], sine[W], cosine[W];
  const std::int64_t pairs = dim / 2;
  for (std::int64_t first = 0; first < pairs; first += W) {
    const int n = static_cast<int>(pairs - first < W ? pairs - first : W);
    for (int j = 0; j < n; ++j) {
      turns[j] = rope_turns(rope_angle(position, frequencies, axes, pairs, first + j));
    }
    for (int j = n; j < W; ++j) turns[j] = 0.0f;
    for (int j = 0; j < W; j += Vec::width) {
      Vec s, c;
      sincos_turns(load(turns + j), &s, &c);
      store(sine + j, s);
      store(cosine + j, c);
    }
    for (int j = 0; j < n; ++j) {
      float *pair_cosine = out.cosine + 2 * (first + j), *pair_sine = out.sine + 2 * (first + j);
      pair_cosine[0] = pair_cosine[1] = cosine[j];
      pair_sine[0] = -sine[j];
      pair_sine[1] = sine[j];
    }
  }
}

ARDIFF_SIMD Vec rotate_pairs(Vec z, const Angles& angles, std::int64_t i, int n) {
  return rotated(z, load_n(angles.cosine + i, n), swap_pairs(z), load_n(angles.sine + i, n));
}

}  // namespace ardiff::cpu::ARDIFF_ISA
