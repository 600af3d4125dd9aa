// SPDX-License-Identifier: Apache-2.0
// Training timesteps by the urn walk: out [B, F] int64. One sample takes T + F - 2 positions, each a Philox
// word, a multiply and a compare. The walks of 4 (AVX2) or 8 (AVX-512) samples go side by side, one per
// 64-bit lane: about 22 vector instructions per position of them all, 15 of these Philox. Threads share the
// samples.
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

#if defined(ARDIFF_ISA_avx512) || defined(ARDIFF_ISA_avx2)

constexpr int kClips = Vec::width / 2;

#if defined(ARDIFF_ISA_avx512)
ARDIFF_SIMD Words load_lanes(const std::uint64_t* p) { return _mm512_load_si512(p); }
ARDIFF_SIMD void store_lanes(std::uint64_t* p, Words a) { _mm512_store_si512(p, a); }
#else
ARDIFF_SIMD Words load_lanes(const std::uint64_t* p) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}
ARDIFF_SIMD void store_lanes(std::uint64_t* p, Words a) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(p), a);
}
#endif

// What the urns of the lanes hold: frames * 2^32, and frames + levels. `below(word, frames + levels) <
// frames` is then one product compared as it stands. Both stay below 2^63, so a signed compare will do.
struct Urns {
  Words frames, left;

  // Takes one position in each lane; bit i: lane i places a frame.
  __attribute__((always_inline)) unsigned place(Words word) {
    const Words drawn = product(word, left);
#if defined(ARDIFF_ISA_avx512)
    const __mmask8 placed = _mm512_cmplt_epi64_mask(drawn, frames);
    frames = _mm512_mask_sub_epi64(frames, placed, frames, _mm512_set1_epi64(1ll << 32));
    left = _mm512_sub_epi64(left, _mm512_set1_epi64(1));
    return placed;
#else
    const __m256i placed = _mm256_cmpgt_epi64(frames, drawn);
    frames = _mm256_sub_epi64(frames, _mm256_and_si256(placed, _mm256_set1_epi64x(1ll << 32)));
    left = _mm256_sub_epi64(left, _mm256_set1_epi64x(1));
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(placed)));
#endif
  }
};

// Rows [row, row + kClips), rule fopp or uniform. A frame placed at position j of the whole walk gets the
// level j - (its number), and one more behind the pivot, which takes no position.
void walk_together(const SampleTimestepsParams& p, std::int64_t row) {
  alignas(64) std::uint64_t high_sample[kClips], low_sample[kClips], frames[kClips], left[kClips];
  std::int64_t turn[kClips], pivot[kClips], shift[kClips], *out[kClips];
  for (int lane = 0; lane < kClips; ++lane) {
    const NoiseKey key = timesteps_key(p.seed, p.first_sample + row + lane);
    high_sample[lane] = key.frame;
    low_sample[lane] = key.stream;
  }
  const NoiseKey key = timesteps_key(p.seed, 0);
  const Words high_samples = load_lanes(high_sample), low_samples = load_lanes(low_sample);
  const auto block = [&](std::int64_t number, Words h[4]) __attribute__((always_inline)) {
    h[0] = words(static_cast<std::uint32_t>(number));
    h[1] = high_samples;
    h[2] = low_samples;
    h[3] = words(key.purpose_step);
    philox_lanes(key.seed_low, key.seed_high, h);
  };

  Words h[4];
  block(0, h);
  alignas(64) std::uint64_t first[2][kClips];
  store_lanes(first[0], h[0]);
  store_lanes(first[1], h[1]);
  const bool fopp = p.rule == TimestepRule::fopp;
  const std::int64_t positions = p.frames + p.timesteps - (fopp ? 2 : 1);
  std::int64_t next_turn = positions;
  for (int lane = 0; lane < kClips; ++lane) {
    out[lane] = p.out + (row + lane) * p.frames;
    shift[lane] = 0;
    turn[lane] = positions;
    frames[lane] = static_cast<std::uint64_t>(p.frames) << 32;
    left[lane] = static_cast<std::uint64_t>(positions);
    if (!fopp) continue;
    const std::int64_t level = below(static_cast<std::uint32_t>(first[1][lane]), p.timesteps);
    pivot[lane] = below(static_cast<std::uint32_t>(first[0][lane]), p.frames);
    out[lane][pivot[lane]] = level;
    turn[lane] = pivot[lane] + level;
    frames[lane] = static_cast<std::uint64_t>(pivot[lane]) << 32;
    left[lane] = static_cast<std::uint64_t>(turn[lane]);
    next_turn = turn[lane] < next_turn ? turn[lane] : next_turn;
  }
  Urns urns{load_lanes(frames), load_lanes(left)};

  const auto pass_pivots = [&](std::int64_t position) {
    store_lanes(frames, urns.frames);
    store_lanes(left, urns.left);
    next_turn = positions;
    for (int lane = 0; lane < kClips; ++lane) {
      if (turn[lane] == position) {
        out[lane] = p.out + (row + lane) * p.frames + pivot[lane] + 1;
        shift[lane] = -pivot[lane];
        frames[lane] = static_cast<std::uint64_t>(p.frames - 1 - pivot[lane]) << 32;
        left[lane] = static_cast<std::uint64_t>(positions - position);
      } else if (turn[lane] > position && turn[lane] < next_turn) {
        next_turn = turn[lane];
      }
    }
    urns = {load_lanes(frames), load_lanes(left)};
  };
  // Positions read the words from number 2 on.
  for (std::int64_t position = 0; position < positions;) {
    if (position > 0) block((position + 2) / 4, h);
    for (std::int64_t word = (position + 2) % 4; word < 4 && position < positions; ++word, ++position) {
      if (position == next_turn) pass_pivots(position);
      for (unsigned placed = urns.place(h[word]); placed; placed &= placed - 1) {
        const int lane = __builtin_ctz(placed);
        *out[lane]++ = position + shift[lane]--;
      }
    }
  }
}

#endif

}  // namespace

void sample_timesteps(const SampleTimestepsParams& p) {
  constexpr std::int64_t kPositionCost = 4;  // of one position, in element-wise operations
  const int threads = threads_for(kPositionCost * p.batch * (p.frames + p.timesteps));
  std::int64_t done = 0;
#if defined(ARDIFF_ISA_avx512) || defined(ARDIFF_ISA_avx2)
  if (p.rule == TimestepRule::fopp || p.rule == TimestepRule::uniform) {
    const std::int64_t groups = p.batch / kClips;
    share_rows(groups, threads, [&p](std::int64_t group) { walk_together(p, group * kClips); });
    done = groups * kClips;
  }
#endif
  share_rows(p.batch - done, threads, [&p, done](std::int64_t i) {
    WordStream stream(timesteps_key(p.seed, p.first_sample + done + i));
    draw_timesteps(stream, p, p.out + (done + i) * p.frames);
  });
}

}  // namespace ardiff::cpu::ARDIFF_ISA
