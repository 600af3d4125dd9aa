// SPDX-License-Identifier: Apache-2.0
// One vector of floats of the native width (Vec: 4, 8 or 16 lanes) and the functions that kernels need on it.
//
// A kernel file is compiled once per instruction set; everything here lives in that set's own namespace and
// is always inlined, so no copy can be merged across instruction sets. `fma` rounds once in avx2 and avx512,
// twice in scalar. Partial loads fill the lanes beyond n with zero and read no memory there.
//
// Accuracy over the full float range unless a range is given: exp, exp2 2 ulp (0 below the smallest normal
// number, clamped just below infinity above), log 2 ulp for normal x > 0, sin/cos of turns 2 ulp (absolute
// 1e-7). NaN stays NaN in exp and exp2. The polynomials are minimax fits on the reduced range, as in Cephes
// (S. Moshier).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(ARDIFF_ISA_avx2) || defined(ARDIFF_ISA_avx512)
#include <immintrin.h>
#endif

#define ARDIFF_SIMD static inline __attribute__((always_inline))

namespace ardiff::cpu::ARDIFF_ISA {

#if defined(ARDIFF_ISA_avx512)

struct Vec {
  static constexpr int width = 16;
  __m512 v;
};
ARDIFF_SIMD __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
ARDIFF_SIMD Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
ARDIFF_SIMD Vec load_partial(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
ARDIFF_SIMD void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
ARDIFF_SIMD void store_partial(float* p, Vec a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
ARDIFF_SIMD void stream(float* p, Vec a) { _mm512_stream_ps(p, a.v); }  // p on a vector's boundary
ARDIFF_SIMD void finish_streams() { _mm_sfence(); }
ARDIFF_SIMD Vec set(float x) { return {_mm512_set1_ps(x)}; }
ARDIFF_SIMD Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
ARDIFF_SIMD Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
ARDIFF_SIMD Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
ARDIFF_SIMD Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
ARDIFF_SIMD Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
ARDIFF_SIMD Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where either is NaN
ARDIFF_SIMD Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }  // b where either is NaN
ARDIFF_SIMD Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
ARDIFF_SIMD Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
ARDIFF_SIMD Vec round(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
ARDIFF_SIMD Vec floor(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
}
// a * 2^n for integral n in [-127, 127]; results below the smallest normal number are 0.
ARDIFF_SIMD Vec scale_by_power(Vec a, Vec n) {
  const __m512i e = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
  return {_mm512_mul_ps(a.v, _mm512_castsi512_ps(e))};
}
// x = m * 2^e with m in [sqrt(1/2), sqrt(2)), for normal x > 0.
ARDIFF_SIMD Vec split_exponent(Vec x, Vec* e) {
  const __m512i shifted = _mm512_sub_epi32(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x3f3504f3));
  *e = {_mm512_cvtepi32_ps(_mm512_srai_epi32(shifted, 23))};
  const __m512i m = _mm512_add_epi32(_mm512_and_si512(shifted, _mm512_set1_epi32(0x007fffff)),
                                     _mm512_set1_epi32(0x3f3504f3));
  return {_mm512_castsi512_ps(m)};
}
// lane-wise: condition a < b ? yes : no (no where either is NaN)
ARDIFF_SIMD Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
// a, but NaN where b is minus infinity, or either infinity
ARDIFF_SIMD Vec nan_at_minus_infinity(Vec a, Vec b) {
  return {_mm512_fixupimm_ps(a.v, b.v, _mm512_set1_epi32(0x30000), 0)};
}
ARDIFF_SIMD Vec nan_at_infinities(Vec a, Vec b) {
  return {_mm512_fixupimm_ps(a.v, b.v, _mm512_set1_epi32(0x330000), 0)};
}
ARDIFF_SIMD float reduce_add(Vec a) {
  const __m256 lo = _mm512_castps512_ps256(a.v), hi = _mm512_extractf32x8_ps(a.v, 1);
  const __m256 s8 = _mm256_add_ps(lo, hi);
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
ARDIFF_SIMD float reduce_max(Vec a) {
  const __m256 lo = _mm512_castps512_ps256(a.v), hi = _mm512_extractf32x8_ps(a.v, 1);
  const __m256 s8 = _mm256_max_ps(lo, hi);
  const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_max_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}

#elif defined(ARDIFF_ISA_avx2)

struct Vec {
  static constexpr int width = 8;
  __m256 v;
};
ARDIFF_SIMD __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
ARDIFF_SIMD Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
ARDIFF_SIMD Vec load_partial(const float* p, int n) { return {_mm256_maskload_ps(p, first_lanes(n))}; }
ARDIFF_SIMD void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
ARDIFF_SIMD void store_partial(float* p, Vec a, int n) { _mm256_maskstore_ps(p, first_lanes(n), a.v); }
ARDIFF_SIMD void stream(float* p, Vec a) { _mm256_stream_ps(p, a.v); }  // p on a vector's boundary
ARDIFF_SIMD void finish_streams() { _mm_sfence(); }
ARDIFF_SIMD Vec set(float x) { return {_mm256_set1_ps(x)}; }
ARDIFF_SIMD Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
ARDIFF_SIMD Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
ARDIFF_SIMD Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
ARDIFF_SIMD Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
ARDIFF_SIMD Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
ARDIFF_SIMD Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }  // b where either is NaN
ARDIFF_SIMD Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }  // b where either is NaN
ARDIFF_SIMD Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
ARDIFF_SIMD Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
ARDIFF_SIMD Vec round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
ARDIFF_SIMD Vec floor(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
ARDIFF_SIMD Vec scale_by_power(Vec a, Vec n) {
  const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
  return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(e))};
}
ARDIFF_SIMD Vec split_exponent(Vec x, Vec* e) {
  const __m256i shifted = _mm256_sub_epi32(_mm256_castps_si256(x.v), _mm256_set1_epi32(0x3f3504f3));
  *e = {_mm256_cvtepi32_ps(_mm256_srai_epi32(shifted, 23))};
  const __m256i m = _mm256_add_epi32(_mm256_and_si256(shifted, _mm256_set1_epi32(0x007fffff)),
                                     _mm256_set1_epi32(0x3f3504f3));
  return {_mm256_castsi256_ps(m)};
}
ARDIFF_SIMD Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
ARDIFF_SIMD Vec nan_at_minus_infinity(Vec a, Vec b) {
  return {_mm256_or_ps(a.v, _mm256_cmp_ps(b.v, _mm256_set1_ps(-__FLT_MAX__), _CMP_LT_OQ))};
}
ARDIFF_SIMD Vec nan_at_infinities(Vec a, Vec b) {
  return {_mm256_or_ps(a.v, _mm256_cmp_ps(abs(b).v, _mm256_set1_ps(__FLT_MAX__), _CMP_GT_OQ))};
}
ARDIFF_SIMD float reduce_add(Vec a) {
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
ARDIFF_SIMD float reduce_max(Vec a) {
  const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_max_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}

#else

// Whatever the baseline has for four floats (SSE2, NEON), through the vector extension of GCC and Clang.
typedef float Floats __attribute__((vector_size(16)));
typedef std::int32_t Ints __attribute__((vector_size(16)));
struct Vec {
  static constexpr int width = 4;
  Floats v;
};
ARDIFF_SIMD Vec load(const float* p) {
  Vec a;
  std::memcpy(&a.v, p, sizeof a.v);
  return a;
}
ARDIFF_SIMD void store(float* p, Vec a) { std::memcpy(p, &a.v, sizeof a.v); }
ARDIFF_SIMD Vec load_partial(const float* p, int n) {
  Vec a = {Floats{0, 0, 0, 0}};
  for (int i = 0; i < n; ++i) a.v[i] = p[i];
  return a;
}
ARDIFF_SIMD void store_partial(float* p, Vec a, int n) {
  for (int i = 0; i < n; ++i) p[i] = a.v[i];
}
ARDIFF_SIMD void stream(float* p, Vec a) { store(p, a); }
ARDIFF_SIMD void finish_streams() {}
ARDIFF_SIMD Vec set(float x) { return {Floats{x, x, x, x}}; }
ARDIFF_SIMD Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
ARDIFF_SIMD Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
ARDIFF_SIMD Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
ARDIFF_SIMD Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
ARDIFF_SIMD Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
ARDIFF_SIMD Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }  // b where either is NaN
ARDIFF_SIMD Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }  // b where either is NaN
ARDIFF_SIMD Vec sqrt(Vec a) {
  for (int i = 0; i < 4; ++i) a.v[i] = __builtin_sqrtf(a.v[i]);
  return a;
}
ARDIFF_SIMD Vec abs(Vec a) { return {(Floats)((Ints)a.v & 0x7fffffff)}; }
ARDIFF_SIMD Vec
round(Vec a) {  // adding 1.5 * 2^23 drops the fraction; numbers beyond 2^22 have none that matter here
  const Floats magic = set(12582912.0f).v;
  const Floats rounded = (a.v + magic) - magic;
  return {abs(a).v < set(4194304.0f).v ? rounded : a.v};
}
ARDIFF_SIMD Vec floor(Vec a) {
  const Vec r = round(a);
  return {r.v > a.v ? r.v - 1.0f : r.v};
}
ARDIFF_SIMD Vec scale_by_power(Vec a, Vec n) {
  return {a.v * (Floats)((__builtin_convertvector(n.v, Ints) + 127) << 23)};
}
ARDIFF_SIMD Vec split_exponent(Vec x, Vec* e) {
  const Ints shifted = (Ints)x.v - 0x3f3504f3;
  e->v = __builtin_convertvector(shifted >> 23, Floats);
  return {(Floats)((shifted & 0x007fffff) + 0x3f3504f3)};
}
ARDIFF_SIMD Vec select_less(Vec a, Vec b, Vec yes, Vec no) { return {a.v < b.v ? yes.v : no.v}; }
ARDIFF_SIMD Vec nan_at_minus_infinity(Vec a, Vec b) {
  return {(Floats)((Ints)a.v | (b.v < set(-__FLT_MAX__).v))};
}
ARDIFF_SIMD Vec nan_at_infinities(Vec a, Vec b) {
  return {(Floats)((Ints)a.v | (abs(b).v > set(__FLT_MAX__).v))};
}
ARDIFF_SIMD float reduce_add(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
ARDIFF_SIMD float reduce_max(Vec a) {
  const float x = a.v[0] > a.v[2] ? a.v[0] : a.v[2], y = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
  return x > y ? x : y;
}

#endif

// 2^r for |r| <= 1/2, relative error 1e-7
ARDIFF_SIMD Vec exp2_reduced(Vec r) {
  Vec y = set(1.535336188319500e-4f);
  y = fma(y, r, set(1.339887440266574e-3f));
  y = fma(y, r, set(9.618437357674640e-3f));
  y = fma(y, r, set(5.550332471162809e-2f));
  y = fma(y, r, set(2.402264791363012e-1f));
  y = fma(y, r, set(6.931472028550421e-1f));
  return fma(y, r, set(1.0f));
}

#if defined(ARDIFF_ISA_avx512)
ARDIFF_SIMD Vec exp2(Vec x) {  // scalef does the range handling: infinity above, 0 for -infinity
  const Vec r = {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  return {_mm512_scalef_ps(exp2_reduced(r).v, (x - r).v)};
}
#else
ARDIFF_SIMD Vec exp2(Vec x) {
  x = max(set(-127.0f), min(set(127.99999f), x));
  const Vec n = min(set(127.0f), round(x));
  return scale_by_power(exp2_reduced(x - n), n);
}
#endif

// Reduces by ln 2 in two parts, so that the error does not grow with |x|.
ARDIFF_SIMD Vec exp(Vec x) {
  x = max(set(-88.0f), min(set(88.7f), x));
  const Vec n = min(set(127.0f), round(x * set(1.44269504088896341f)));
  Vec r = fma(n, set(-0.693359375f), x);
  r = fma(n, set(2.12194440e-4f), r);
  Vec y = set(1.9875691500e-4f);
  y = fma(y, r, set(1.3981999507e-3f));
  y = fma(y, r, set(8.3334519073e-3f));
  y = fma(y, r, set(4.1665795894e-2f));
  y = fma(y, r, set(1.6666665459e-1f));
  y = fma(y, r, set(5.0000001201e-1f));
  y = fma(y, r * r, r + set(1.0f));
  return scale_by_power(y, n);
}

ARDIFF_SIMD Vec log(Vec x) {
  Vec e;
  const Vec r = split_exponent(x, &e) - set(1.0f);
  const Vec z = r * r;
  Vec y = set(7.0376836292e-2f);
  y = fma(y, r, set(-1.1514610310e-1f));
  y = fma(y, r, set(1.1676998740e-1f));
  y = fma(y, r, set(-1.2420140846e-1f));
  y = fma(y, r, set(1.4249322787e-1f));
  y = fma(y, r, set(-1.6668057665e-1f));
  y = fma(y, r, set(2.0000714765e-1f));
  y = fma(y, r, set(-2.4999993993e-1f));
  y = fma(y, r, set(3.3333331174e-1f));
  y = y * r * z;
  y = fma(e, set(-2.12194440e-4f), y);
  y = fma(set(-0.5f), z, y);
  return fma(e, set(0.693359375f), r + y);
}

// sin(2 pi t) and cos(2 pi t), |t| < 2^22. The reduction to an eighth of a turn is exact.
ARDIFF_SIMD void sincos_turns(Vec t, Vec* sine, Vec* cosine) {
  const Vec quarter = round(t * set(4.0f));
  const Vec x = fma(quarter, set(-0.25f), t) * set(6.28318530717958648f);
  const Vec z = x * x;
  Vec s = fma(set(-1.9515295891e-4f), z, set(8.3321608736e-3f));
  s = fma(s, z, set(-1.6666654611e-1f));
  s = fma(s * z, x, x);
  Vec c = fma(set(2.443315711809948e-5f), z, set(-1.388731625493765e-3f));
  c = fma(c, z, set(4.166664568298827e-2f));
  c = fma(c * z, z, fma(set(-0.5f), z, set(1.0f)));
  // quarter mod 4 decides which of the two is which, and their signs
#if defined(ARDIFF_ISA_avx512)
  const __m512i q = _mm512_cvtps_epi32(quarter.v), two = _mm512_set1_epi32(2);
  const __mmask16 odd = _mm512_test_epi32_mask(q, _mm512_set1_epi32(1));
  const Vec zero = set(0.0f), a = {_mm512_mask_blend_ps(odd, s.v, c.v)},
            b = {_mm512_mask_blend_ps(odd, c.v, s.v)};
  *sine = {_mm512_mask_sub_ps(a.v, _mm512_test_epi32_mask(q, two), zero.v, a.v)};
  const __m512i next = _mm512_add_epi32(q, _mm512_set1_epi32(1));
  *cosine = {_mm512_mask_sub_ps(b.v, _mm512_test_epi32_mask(next, two), zero.v, b.v)};
#else
  const Vec q = fma(floor(quarter * set(0.25f)), set(-4.0f), quarter);
  const Vec odd = fma(floor(q * set(0.5f)), set(-2.0f), q), half = set(0.5f), zero = set(0.0f);
  const Vec a = select_less(odd, half, s, c), b = select_less(odd, half, c, s);
  *sine = select_less(q, set(1.5f), a, zero - a);
  *cosine = select_less(abs(q - set(1.5f)), set(1.0f), zero - b, b);
#endif
}
ARDIFF_SIMD Vec sin_turns(Vec t) {
  Vec s, c;
  sincos_turns(t, &s, &c);
  return s;
}
ARDIFF_SIMD Vec cos_turns(Vec t) {
  Vec s, c;
  sincos_turns(t, &s, &c);
  return c;
}

}  // namespace ardiff::cpu::ARDIFF_ISA
