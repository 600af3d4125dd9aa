// SPDX-License-Identifier: Apache-2.0
// Training timesteps by the urn walk: out [B, F] int64. One sample takes T + F - 2 positions, each a multiply
// and a compare; its words come from the vector Philox in blocks. Threads share the samples.
#include "ardiff/sample_timesteps.h"

#include "philox_simd.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

// Random access to the words of one sample, kNoiseGroup of them at a time.
class WordStream {
 public:
  explicit WordStream(const NoiseKey& key) : key_(key) {}
  std::uint32_t at(std::int64_t index) {
    const std::int64_t group = index / kNoiseGroup;
    if (group != group_) fill(group);
    return words_[index % kNoiseGroup];
  }

 private:
  void fill(std::int64_t group) {
    Words c[4];
    philox_blocks(key_, static_cast<std::uint32_t>(group * Vec::width), c);
    Vec lanes[4];
    static_assert(sizeof lanes == sizeof c, "words and floats have the same width");
    __builtin_memcpy(lanes, c, sizeof c);
    interleave(lanes);
    __builtin_memcpy(words_, lanes, sizeof lanes);
    group_ = group;
  }
  NoiseKey key_;
  std::int64_t group_ = -1;
  alignas(64) std::uint32_t words_[kNoiseGroup];
};

// Places `frames` frames from `level` on, over `levels` further levels. The first position reads word `word`.
void walk(WordStream& stream, std::int64_t word, std::int64_t frames, std::int64_t levels, std::int64_t level,
          std::int64_t* out) {
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

void sample(const SampleTimestepsParams& p, std::int64_t row) {
  WordStream stream(timesteps_key(p.seed, p.first_sample + row));
  std::int64_t* out = p.out + row * p.frames;
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
      return walk(stream, 2, p.frames, p.timesteps - 1, 0, out);
    case TimestepRule::fopp: {
      const std::int64_t frame = below(stream.at(0), p.frames), level = below(stream.at(1), p.timesteps);
      walk(stream, 2, frame, level, 0, out);
      out[frame] = level;
      return walk(stream, 2 + frame + level, p.frames - 1 - frame, p.timesteps - 1 - level, level,
                  out + frame + 1);
    }
  }
}

}  // namespace

void sample_timesteps(const SampleTimestepsParams& p) {
  constexpr std::int64_t kPositionCost = 4;  // of one position, in element-wise operations
  const int threads = threads_for(kPositionCost * p.batch * (p.frames + p.timesteps));
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t row = 0; row < p.batch; ++row) sample(p, row);
}

}  // namespace ardiff::cpu::ARDIFF_ISA
