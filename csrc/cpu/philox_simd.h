// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 and Box-Muller, one block of four words per lane: 4 * Vec::width elements at a time, in
// element order.
//
// The four results of a lane are consecutive elements. Lane 4 g + k runs block (width / 4) k + g, so that
// interleaving within 128-bit groups, without moves across them, puts all blocks in order.
#pragma once

#include "ardiff/philox_normal.h"
#include "streaming.h"

namespace ardiff::cpu::ARDIFF_ISA {

constexpr int kNoiseGroup = 4 * Vec::width;  // elements per call

#if defined(ARDIFF_ISA_avx512)

using Words = __m512i;
ARDIFF_SIMD Words words(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
ARDIFF_SIMD Words block_numbers(std::uint32_t first) {
  return _mm512_add_epi32(words(first),
                          _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
}
ARDIFF_SIMD Words exclusive_or(Words a, Words b, Words c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
ARDIFF_SIMD Words product(Words a, Words m) { return _mm512_mul_epu32(a, m); }
ARDIFF_SIMD Words high(Words a) { return _mm512_shuffle_epi32(a, _MM_PERM_DDBB); }
ARDIFF_SIMD Words join(Words even, Words odd) {
  return _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA);
}
ARDIFF_SIMD Vec to_float(Words a) { return {_mm512_cvtepu32_ps(a)}; }
ARDIFF_SIMD void interleave(Vec z[4]) {
  const __m512d t0 = _mm512_castps_pd(_mm512_unpacklo_ps(z[0].v, z[1].v));
  const __m512d t1 = _mm512_castps_pd(_mm512_unpackhi_ps(z[0].v, z[1].v));
  const __m512d t2 = _mm512_castps_pd(_mm512_unpacklo_ps(z[2].v, z[3].v));
  const __m512d t3 = _mm512_castps_pd(_mm512_unpackhi_ps(z[2].v, z[3].v));
  z[0].v = _mm512_castpd_ps(_mm512_unpacklo_pd(t0, t2));
  z[1].v = _mm512_castpd_ps(_mm512_unpackhi_pd(t0, t2));
  z[2].v = _mm512_castpd_ps(_mm512_unpacklo_pd(t1, t3));
  z[3].v = _mm512_castpd_ps(_mm512_unpackhi_pd(t1, t3));
}

#elif defined(ARDIFF_ISA_avx2)

using Words = __m256i;
ARDIFF_SIMD Words words(std::uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
ARDIFF_SIMD Words block_numbers(std::uint32_t first) {
  return _mm256_add_epi32(words(first), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
}
ARDIFF_SIMD Words exclusive_or(Words a, Words b, Words c) {
  return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
}
ARDIFF_SIMD Words product(Words a, Words m) { return _mm256_mul_epu32(a, m); }
ARDIFF_SIMD Words high(Words a) { return _mm256_shuffle_epi32(a, 0xF5); }
ARDIFF_SIMD Words join(Words even, Words odd) {
  return _mm256_blend_epi32(even, _mm256_shuffle_epi32(odd, 0xA0), 0xAA);
}
// Both halves convert exactly, so the sum is the one rounding of the conversion.
ARDIFF_SIMD Vec to_float(Words a) {
  const __m256 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(a, 16));
  const __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(a, _mm256_set1_epi32(0xFFFF)));
  return {_mm256_fmadd_ps(high, _mm256_set1_ps(65536.0f), low)};
}
ARDIFF_SIMD void interleave(Vec z[4]) {
  const __m256d t0 = _mm256_castps_pd(_mm256_unpacklo_ps(z[0].v, z[1].v));
  const __m256d t1 = _mm256_castps_pd(_mm256_unpackhi_ps(z[0].v, z[1].v));
  const __m256d t2 = _mm256_castps_pd(_mm256_unpacklo_ps(z[2].v, z[3].v));
  const __m256d t3 = _mm256_castps_pd(_mm256_unpackhi_ps(z[2].v, z[3].v));
  z[0].v = _mm256_castpd_ps(_mm256_unpacklo_pd(t0, t2));
  z[1].v = _mm256_castpd_ps(_mm256_unpackhi_pd(t0, t2));
  z[2].v = _mm256_castpd_ps(_mm256_unpacklo_pd(t1, t3));
  z[3].v = _mm256_castpd_ps(_mm256_unpackhi_pd(t1, t3));
}

#else

typedef std::uint32_t Words __attribute__((vector_size(16)));
ARDIFF_SIMD Words words(std::uint32_t x) { return Words{x, x, x, x}; }
ARDIFF_SIMD Words block_numbers(std::uint32_t first) { return words(first) + Words{0, 1, 2, 3}; }
ARDIFF_SIMD void multiply(Words a, Words m, Words* high, Words* low) {
  for (int i = 0; i < 4; ++i) {
    const std::uint64_t product = static_cast<std::uint64_t>(a[i]) * m[i];
    (*high)[i] = static_cast<std::uint32_t>(product >> 32);
    (*low)[i] = static_cast<std::uint32_t>(product);
  }
}
ARDIFF_SIMD Vec to_float(Words a) {
  return {Floats{static_cast<float>(a[0]), static_cast<float>(a[1]), static_cast<float>(a[2]),
                 static_cast<float>(a[3])}};
}
ARDIFF_SIMD void interleave(Vec z[4]) {
  const Floats a = z[0].v, b = z[1].v, c = z[2].v, d = z[3].v;
  for (int i = 0; i < 4; ++i) z[i].v = Floats{a[i], b[i], c[i], d[i]};
}

#endif

// The words of Vec::width blocks from `block` on, lanes in the order of block_numbers.
#if defined(ARDIFF_ISA_avx512) || defined(ARDIFF_ISA_avx2)
// Even and odd lanes apart, each in the low half of a 64-bit lane: a product needs no unpacking then, its low
// half is the next word as it stands, and what the high halves hold is never read.
ARDIFF_SIMD void philox_lanes(std::uint32_t k0, std::uint32_t k1, Words h[4]) {
  const Words m0 = words(kPhiloxMultiplier0), m1 = words(kPhiloxMultiplier1);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const Words p0 = product(h[0], m0), p1 = product(h[2], m1);
    h[0] = exclusive_or(high(p1), h[1], words(k0));
    h[2] = exclusive_or(high(p0), h[3], words(k1));
    h[1] = p1;
    h[3] = p0;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
}
ARDIFF_SIMD void philox_blocks(const NoiseKey& key, std::uint32_t block, Words c[4]) {
  const Words numbers = block_numbers(block), frame = words(key.frame), stream = words(key.stream),
              purpose_step = words(key.purpose_step);
  Words even[4] = {numbers, frame, stream, purpose_step},
        odd[4] = {high(numbers), frame, stream, purpose_step};
  philox_lanes(key.seed_low, key.seed_high, even);
  philox_lanes(key.seed_low, key.seed_high, odd);
  for (int word = 0; word < 4; ++word) c[word] = join(even[word], odd[word]);
}
#else
ARDIFF_SIMD void philox_blocks(const NoiseKey& key, std::uint32_t block, Words c[4]) {
  const Words m0 = words(kPhiloxMultiplier0), m1 = words(kPhiloxMultiplier1);
  std::uint32_t k0 = key.seed_low, k1 = key.seed_high;
  c[0] = block_numbers(block);
  c[1] = words(key.frame);
  c[2] = words(key.stream);
  c[3] = words(key.purpose_step);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    Words high0, low0, high1, low1;
    multiply(c[0], m0, &high0, &low0);
    multiply(c[2], m1, &high1, &low1);
    c[0] = high1 ^ c[1] ^ words(k0);
    c[2] = high0 ^ c[3] ^ words(k1);
    c[1] = low1;
    c[3] = low0;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
}
#endif

ARDIFF_SIMD void box_muller(Words a, Words b, Vec* even, Vec* odd) {
  const Vec u1 = fma(to_float(a), set(kUniformScale), set(kUniformOffset));
  const Vec u2 = fma(to_float(b), set(kUniformScale), set(kUniformOffset));
  const Vec radius = sqrt(set(-2.0f) * log(u1));
  Vec sine, cosine;
  sincos_turns(u2, &sine, &cosine);
  *even = radius * cosine;
  *odd = radius * sine;
}

// The four results of each block in turn, from words c in the order of philox_blocks.
ARDIFF_SIMD void normals(const Words c[4], Vec z[4]) {
  box_muller(c[0], c[1], &z[0], &z[1]);
  box_muller(c[2], c[3], &z[2], &z[3]);
  interleave(z);
}

// body(offset, eps, n) over the elements [begin, end) of a row; begin is a multiple of 4.
//
// First the words of some groups, then their normals: in one loop, Philox, logarithm, root and sine of a
// group are a chain of some 250 cycles in 300 instructions, and a processor looks ahead no farther than that.
// Two short loops overlap several groups each.
template <class Body>
ARDIFF_SIMD void for_noise(const NoiseKey& key, std::int64_t begin, std::int64_t end, Body body) {
  constexpr int kGroups = 16;
  Words c[kGroups][4];
  for (std::int64_t first = begin; first < end; first += kGroups * kNoiseGroup) {
    const std::int64_t left = (end - first + kNoiseGroup - 1) / kNoiseGroup;
    const int groups = left < kGroups ? static_cast<int>(left) : kGroups;
    const auto block = static_cast<std::uint32_t>(first / 4);
    for (int group = 0; group < groups; ++group) {
      philox_blocks(key, block + static_cast<std::uint32_t>(group * Vec::width), c[group]);
    }
    for (int group = 0; group < groups; ++group) {
      Vec z[4];
      normals(c[group], z);
      std::int64_t i = first + group * kNoiseGroup;
      if (i + kNoiseGroup <= end) {
        for (int part = 0; part < 4; ++part) body(i + part * Vec::width, z[part], Vec::width);
        continue;
      }
      for (int part = 0; part < 4 && i < end; ++part, i += Vec::width) {
        body(i, z[part], static_cast<int>(end - i < Vec::width ? end - i : Vec::width));
      }
    }
  }
}

// A row is cut into chunks of this many elements, which threads share.
constexpr std::int64_t kNoiseChunk = 4096;

// body(row, begin, end) for every chunk of every row
template <class Body>
ARDIFF_SIMD void for_chunks(std::int64_t rows, std::int64_t elements, Body body) {
  const std::int64_t per_row = (elements + kNoiseChunk - 1) / kNoiseChunk, chunks = rows * per_row;
  share_rows(chunks, threads_for(rows * elements), [=](std::int64_t chunk) __attribute__((always_inline)) {
    const std::int64_t row = chunk / per_row, begin = chunk % per_row * kNoiseChunk;
    const std::int64_t left = elements - begin;
    body(row, begin, begin + (left < kNoiseChunk ? left : kNoiseChunk));
  });
}

}  // namespace ardiff::cpu::ARDIFF_ISA
