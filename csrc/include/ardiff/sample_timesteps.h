// SPDX-License-Identifier: Apache-2.0
// Training timesteps by an integer urn walk: no tables, and the same sequence on every device.
//
// With a frames and b levels left, a position places the next frame at the current level with probability a /
// (a + b), else raises the level: all non-decreasing sequences are then equally likely.
#pragma once

#include "hd.h"
#include "integers.h"
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

// Places `frames` frames from `level` on, over `levels` further levels. The first position reads word `word`;
// stream.at(i) is word i of the sample.
template <class WordStream>
ARDIFF_HD inline void urn_walk(WordStream& stream, std::int64_t word, std::int64_t frames,
                               std::int64_t levels, std::int64_t level, std::int64_t* out) {
  while (frames > 0) {
    if (below(stream.at(word++), frames + levels) < frames) {
      *out++ = level;
      --frames;
    } else {
      ++level;
      --levels;
    }
  }
}

// One sample into out[0 .. frames).
template <class WordStream>
ARDIFF_HD inline void draw_timesteps(WordStream& stream, const SampleTimestepsParams& p, std::int64_t* out) {
  switch (p.rule) {
    case TimestepRule::shared: {
      const std::int64_t t = below(stream.at(0), p.timesteps);
      for (std::int64_t f = 0; f < p.frames; ++f) out[f] = t;
      return;
    }
    case TimestepRule::iid:
      for (std::int64_t f = 0; f < p.frames; ++f) out[f] = below(stream.at(f), p.timesteps);
      return;
    case TimestepRule::uniform:
      return urn_walk(stream, 2, p.frames, p.timesteps - 1, 0, out);
    case TimestepRule::fopp: {
      const std::int64_t frame = below(stream.at(0), p.frames), level = below(stream.at(1), p.timesteps);
      urn_walk(stream, 2, frame, level, 0, out);
      out[frame] = level;
      return urn_walk(stream, 2 + frame + level, p.frames - 1 - frame, p.timesteps - 1 - level, level,
                      out + frame + 1);
    }
  }
}

}  // namespace ardiff
