// SPDX-License-Identifier: Apache-2.0
// Counter-based normal noise: Philox4x32-10 (Salmon et al., SC 2011) and Box-Muller.
//
//   words = philox((element / 4, frame, stream, purpose << 24 | step), (seed low, seed high))
//   u = fma(float(word), 2^-32, 2^-33);  r = sqrt(-2 ln u1);  z = r cos(2 pi u2), r sin(2 pi u2)
//
// Elements 4i, 4i+1 come from words 0 and 1 of block i, elements 4i+2, 4i+3 from words 2 and 3.
#pragma once

#include "hd.h"
#include "integers.h"

namespace ardiff {

constexpr std::uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr std::uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;
constexpr float kUniformScale = 2.3283064365386963e-10f;   // 2^-32
constexpr float kUniformOffset = 1.1641532182693481e-10f;  // 2^-33: u is never 0

// Everything of key and counter but the block number.
struct NoiseKey {
  std::uint32_t seed_low, seed_high, frame, stream, purpose_step;
};

// One row of the int64 key tensor: seed, stream, frame, purpose, step.
ARDIFF_HD inline NoiseKey noise_key(const std::int64_t* row) {
  const auto seed = static_cast<std::uint64_t>(row[0]);
  const auto purpose = static_cast<std::uint32_t>(row[3]) << 24;
  const auto step = static_cast<std::uint32_t>(row[4]) & 0xFFFFFFu;
  return {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32),
          static_cast<std::uint32_t>(row[2]), static_cast<std::uint32_t>(row[1]), purpose | step};
}

ARDIFF_HD inline void philox(const NoiseKey& key, std::uint32_t block, std::uint32_t words[4]) {
  std::uint32_t c0 = block, c1 = key.frame, c2 = key.stream, c3 = key.purpose_step;
  std::uint32_t k0 = key.seed_low, k1 = key.seed_high;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const std::uint64_t p0 = static_cast<std::uint64_t>(kPhiloxMultiplier0) * c0;
    const std::uint64_t p1 = static_cast<std::uint64_t>(kPhiloxMultiplier1) * c2;
    c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<std::uint32_t>(p1);
    c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<std::uint32_t>(p0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

struct PhiloxNormalParams {
  const std::int64_t* keys;  // [rows, 5]
  float* out;                // [rows, elements]
  std::int64_t rows, elements;
};

}  // namespace ardiff
