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

}  // namespace

void sample_timesteps(const SampleTimestepsParams& p) {
  constexpr std::int64_t kPositionCost = 4;  // of one position, in element-wise operations
  const int threads = threads_for(kPositionCost * p.batch * (p.frames + p.timesteps));
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t row = 0; row < p.batch; ++row) {
    WordStream stream(timesteps_key(p.seed, p.first_sample + row));
    draw_timesteps(stream, p, p.out + row * p.frames);
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
