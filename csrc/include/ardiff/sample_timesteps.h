// SPDX-License-Identifier: Apache-2.0
// Training timesteps by an integer urn walk: no tables, and the same sequence on every device.
//
// With a frames and b levels left, a position places the next frame at the current level with probability a /
// (a + b), else raises the level: all non-decreasing sequences are then equally likely.
#pragma once

#include <cstdint>

#include "hd.h"
#include "philox_normal.h"

namespace ardiff {

enum class TimestepRule { fopp = 0, uniform = 1, iid = 2, shared = 3 };

constexpr std::uint32_t kPurposeTimesteps = 5;

ARDIFF_HD inline NoiseKey timesteps_key(std::int64_t seed, std::int64_t sample) {
  const auto s = static_cast<std::uint64_t>(seed), i = static_cast<std::uint64_t>(sample);
  return {static_cast<std::uint32_t>(s), static_cast<std::uint32_t>(s >> 32),
          static_cast<std::uint32_t>(i >> 32), static_cast<std::uint32_t>(i), kPurposeTimesteps << 24};
}

// Uniform over 0 .. range-1.
ARDIFF_HD inline std::int64_t below(std::uint32_t word, std::int64_t range) {
  return static_cast<std::int64_t>((static_cast<std::uint64_t>(word) * static_cast<std::uint64_t>(range)) >>
                                   32);
}

struct SampleTimestepsParams {
  std::int64_t* out;  // [batch, frames]
  std::int64_t batch, frames, timesteps, seed, first_sample;
  TimestepRule rule;
};

}  // namespace ardiff
