// SPDX-License-Identifier: Apache-2.0
// What one warp of the tensor-core frame attention kernel does with kTiles x 16 query rows and a step of 64
// keys: scores S = q K^T, online softmax, O = alpha O + P V.
//
// Lane 4 g + t holds, of every 16 x 8 accumulator, rows g and g + 8 ("halves"), columns 2t and 2t + 1. Two
// neighbouring accumulators of S are, packed to 16 bits, exactly the A fragment of P: no value moves between
// lanes.
//
// kMasked = false is the path of nearly all steps: 64 keys that exist and that all rows of the warp see, and
// a positive scale. Otherwise each logit is scaled, biased and tested one by one.
#pragma once

#include "cuda/frame_attention_finite.cuh"
#include "cuda/frame_attention_memory.cuh"

namespace ardiff::cuda {

template <int kTiles, int kDim>
struct WarpState {
  float o[kTiles][kDim / 8][4];
  float top[kTiles][2];  // running maximum of a row, in units of log 2
  float sum[kTiles][2];  // this lane's part of the denominator

  __device__ WarpState() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) o[t][n][0] = o[t][n][1] = o[t][n][2] = o[t][n][3] = 0.0f;
      top[t][0] = top[t][1] = -infinity();
      sum[t][0] = sum[t][1] = 0.0f;
    }
  }
};

template <int kTiles>
using Scores = float[kTiles][kStepKeys / 8][4];
template <int kTiles>
using Weights = std::uint32_t[kTiles][kStepBlocks][4];

// Addresses for ldmatrix: matrices 0 and 1 are rows 0..7 and 8..15 of 8 columns, 2 and 3 of the next 8
// columns. That is an A fragment of q, and B fragments of K (as it lies) and V (transposed).
template <int kDim>
__device__ inline std::uint32_t fragment(std::uint32_t rows, int column_tile, int lane) {
  return rows + Swizzle<kDim>::offset(lane % 16, 2 * column_tile + lane / 16);
}

template <class T, int kTiles, int kDim>
__device__ inline void compute_scores(std::uint32_t q, std::uint32_t k, int lane, Scores<kTiles>& s) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int n = 0; n < kStepKeys / 8; ++n) s[t][n][0] = s[t][n][1] = s[t][n][2] = s[t][n][3] = 0.0f;
  }
#pragma unroll
  for (int c = 0; c < kDim / 16; ++c) {
    std::uint32_t a[kTiles][4], b[4];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) load_matrices(a[t], fragment<kDim>(q + t * 16 * kDim * 2, c, lane));
#pragma unroll
    for (int j = 0; j < kStepBlocks; ++j) {
      load_matrices(b, fragment<kDim>(k + j * kKeyBlock * kDim * 2, c, lane));
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        mma<T>(s[t][2 * j], a[t], b[0], b[2]);
        mma<T>(s[t][2 * j + 1], a[t], b[1], b[3]);
      }
    }
  }
}

// Scales and biases the logits of a step; -infinity where the key does not exist or its row does not see it.
template <int kTiles>
__device__ inline void mask_scores(Scores<kTiles>& s, const Keys* keys, const std::int32_t* limits, int block,
                                   float scale, int lane) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int seen = limits[t * 16 + half * 8 + lane / 4] - block;
#pragma unroll
      for (int n = 0; n < kStepKeys / 8; ++n) {
        const int rows = n / 2 < seen ? keys[n / 2].rows : 0, column = n % 2 * 8 + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& logit = s[t][n][2 * half + i];
          logit = column + i < rows ? fma(logit, scale, keys[n / 2].bias) : -infinity();
        }
      }
    }
  }
}

// Turns logits into weights exp2(logit - top), and rescales what was summed before. Without mask_scores, the
// scale is applied here: it is positive, so the largest product is the largest logit, one multiply-add per 16
// keys.
template <class T, int kTiles, int kDim, bool kMasked>
__device__ inline void softmax(Scores<kTiles>& s, const Keys* keys, float scale,
                               WarpState<kTiles, kDim>& state, Weights<kTiles>& weights) {
  const float factor = kMasked ? 1.0f : scale;
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = state.top[t][half];
#pragma unroll
      for (int j = 0; j < kStepBlocks; ++j) {
        const float* a = s[t][2 * j] + 2 * half;
        const float* b = s[t][2 * j + 1] + 2 * half;
        const float most = max(max(a[0], a[1]), max(b[0], b[1]));
        top = max(top, kMasked ? most : fma(most, factor, keys[j].bias));
      }
      top = max(top, shuffle_xor(top, 1));
      top = max(top, shuffle_xor(top, 2));
      // A row that has seen nothing yet keeps top = -infinity; shift by 0 then, so that weights are 0 and not
      // NaN.
      const float shift = top == -infinity() ? 0.0f : top;
      const float alpha = exp2_fast(state.top[t][half] - shift);
      state.top[t][half] = top;
      float sum = state.sum[t][half] * alpha;
#pragma unroll
      for (int n = 0; n < kStepKeys / 8; ++n) {
        const float offset = kMasked ? -shift : keys[n / 2].bias - shift;
        float* logits = s[t][n] + 2 * half;
        logits[0] = exp2_fast(fma(logits[0], factor, offset));
        logits[1] = exp2_fast(fma(logits[1], factor, offset));
        sum += logits[0] + logits[1];
        weights[t][n / 2][n % 2 * 2 + half] = pack<T>(logits[0], logits[1]);
      }
      state.sum[t][half] = sum;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        state.o[t][n][2 * half] *= alpha;
        state.o[t][n][2 * half + 1] *= alpha;
      }
    }
  }
}

// A masked step multiplies rows that do not see a page with its values, by a weight of 0. Values that are not
// finite would reach them, so they are taken out, and the rows that do see them are made NaN as a whole: a
// failing frame fails alone.
template <class T, int kTiles, int kDim, bool kMasked>
__device__ inline void add_values(std::uint32_t v, const Weights<kTiles>& weights, const std::int32_t* limits,
                                  int block, int lane, WarpState<kTiles, kDim>& state) {
#pragma unroll
  for (int j = 0; j < kStepBlocks; ++j) {
    bool bad = false;
#pragma unroll
    for (int c = 0; c < kDim / 16; ++c) {
      std::uint32_t b[4];
      load_matrices_transposed(b, fragment<kDim>(v + j * kKeyBlock * kDim * 2, c, lane));
      if (kMasked) {
#pragma unroll
        for (int i = 0; i < 4; ++i) bad |= remove_non_finite<T>(b[i]);
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        mma<T>(state.o[t][2 * c], weights[t][j], b[0], b[1]);
        mma<T>(state.o[t][2 * c + 1], weights[t][j], b[2], b[3]);
      }
    }
    if (kMasked && any_lane(bad)) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (block + j < limits[t * 16 + half * 8 + lane / 4]) state.sum[t][half] = not_a_number();
        }
      }
    }
  }
}

}  // namespace ardiff::cuda
