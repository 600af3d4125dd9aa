// SPDX-License-Identifier: Apache-2.0
// What a consumer warpgroup of the Hopper frame attention kernel does with its 64 query rows: scores
// S = q K^T, online softmax, O += P V. How rows come and go is in frame_attention_rows.cuh.
//
// Lane 4 g + t of warp w holds rows 16 w + g and 16 w + g + 8 ("halves") of S and O, columns 8 n + 2 t and +
// 1 of them; two neighbouring 8-column pieces of S are, packed to 16 bits, the A fragment of P for 16 keys.
#pragma once

#include "cuda/sm90/frame_attention_rows.cuh"
#include "cuda/sm90/wgmma.cuh"

namespace ardiff::cuda {

template <int kKeys>
using StreamScores = float[kKeys / 2];
template <int kKeys>
using StreamWeights = std::uint32_t[kKeys / 16][4];

// Starts S = q K^T; one group of wgmma.
template <class T, int kDim, int kKeys>
__device__ __forceinline__ void start_scores(std::uint32_t q, std::uint32_t k, StreamScores<kKeys>& s) {
  using Memory = StreamMemory<kDim, kKeys>;
  wgmma_fence();
#pragma unroll
  for (int c = 0; c < kDim / 16; ++c) {
    const int slab = c / 4, bytes = c % 4 * 32;
    wgmma_scores<T>(s, slab_descriptor(q + slab * Memory::kQuerySlabBytes + bytes),
                    slab_descriptor(k + slab * Memory::kSlotSlabBytes + bytes), c > 0);
  }
  wgmma_commit();
}

// Starts O += P V; one group of wgmma.
template <class T, int kDim, int kKeys>
__device__ __forceinline__ void start_values(std::uint32_t v, const StreamWeights<kKeys>& weights,
                                             Rows64<kDim>& rows) {
  using Memory = StreamMemory<kDim, kKeys>;
  rows.pin_sums();
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < kKeys / 16; ++j) {
    wgmma_values<T>(rows.o, weights[j], slab_descriptor(v + j * 16 * kSlabRowBytes));
    if constexpr (Memory::kSlabs > 1) {
      wgmma_values<T>(rows.o2, weights[j],
                      slab_descriptor(v + Memory::kSlotSlabBytes + j * 16 * kSlabRowBytes));
    }
  }
  wgmma_commit();
}

// Scales and biases the logits of a step; -infinity where the key does not exist or its row does not see it.
template <int kKeys>
__device__ __forceinline__ void mask_scores(StreamScores<kKeys>& s, const StepList<kKeys>& list,
                                            const int (&limits)[2], float scale, int lane) {
#pragma unroll
  for (int j = 0; j < kKeys / 16; ++j) {
    const StepKeys keys = list.keys[j];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Columns of this lane that the row sees: those below `rows`, counted from the lane's first.
      const int rows = (keys.box < limits[half] ? keys.rows : 0) - lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& logit = s[8 * j + i / 2 * 4 + 2 * half + i % 2];
        const float biased = fma(logit, scale, keys.bias);
        logit = i / 2 * 8 + i % 2 < rows ? biased : -infinity();
      }
    }
  }
}

// Turns logits, times a positive factor, into weights exp2(logit - top). alpha: what is left of everything
// summed before.
template <int kKeys>
__device__ __forceinline__ void softmax(StreamScores<kKeys>& s, float factor, float (&top)[2],
                                        float (&sum)[2], float (&alpha)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float most = -infinity();
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      most = max(most, max(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]));
    }
    most = max(most, shuffle_xor(most, 1));
    most = max(most, shuffle_xor(most, 2));
    most = max(top[half], most * factor);
    // A row that has seen nothing yet keeps top = -infinity; shift by 0 then, so that weights are 0 and not
    // NaN.
    const float shift = most == -infinity() ? 0.0f : most;
    alpha[half] = exp2_fast(top[half] - shift);
    top[half] = most;
    float even = 0.0f, odd = 0.0f;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      float* logits = s + 4 * n + 2 * half;
      logits[0] = exp2_fast(fma(logits[0], factor, -shift));
      logits[1] = exp2_fast(fma(logits[1], factor, -shift));
      even += logits[0];
      odd += logits[1];
    }
    sum[half] = fma(sum[half], alpha[half], even + odd);
  }
}

template <class T, int kKeys>
__device__ __forceinline__ void pack_weights(const StreamScores<kKeys>& s, StreamWeights<kKeys>& weights) {
#pragma unroll
  for (int j = 0; j < kKeys / 16; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) weights[j][i] = pack<T>(s[8 * j + 2 * i], s[8 * j + 2 * i + 1]);
  }
}

// Rows that see a value that is not finite become NaN.
template <int kKeys>
__device__ __forceinline__ void spoil_rows(const StepList<kKeys>& list, const int (&limits)[2],
                                           float (&sum)[2]) {
#pragma unroll
  for (int j = 0; j < kKeys / 16; ++j) {
    const StepKeys keys = list.keys[j];
    if (keys.spoilt == 0) continue;
    if (keys.box < limits[0]) sum[0] = not_a_number();
    if (keys.box < limits[1]) sum[1] = not_a_number();
  }
}

template <class T, int kDim, int kKeys>
__device__ __forceinline__ void consume(const StreamMemory<kDim, kKeys>& shared,
                                        const FrameAttentionParams& p, const StreamKWork& work) {
  using Memory = StreamMemory<kDim, kKeys>;
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads, lane = thread % 32;
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads - 1, worker = static_cast<int>(blockIdx.x);
  const int first_row = group * kGroupRows, warp_row = first_row + thread / 32 * 16;
  const int boxes = step_boxes(work.block_rows), barrier = 1 + group;
  const std::uint32_t q = shared.q + first_row * kSlabRowBytes;
  const float scale = p.scale * kLog2E;
  // This warp is done with a load.
  const auto release = [&](int load) {
    warp_barrier();
    if (lane == 0) mbarrier_arrive(shared.empty(load));
  };
  int step = 0;
  for (int i = work.begins[worker]; i < work.begins[worker + 1]; ++i) {
    // Every use below goes through opaque numbers: what can be computed again is not kept in registers.
    const StreamKItem& item = work.items[i];
    named_barrier(barrier, kGroupThreads);  // the stores of the item before have left the rows of q
    load_queries(shared, p, work, item, opaque(first_row), opaque(thread));
    named_barrier(barrier, kGroupThreads);

    int most = max(shared.limits[first_row + lane], shared.limits[first_row + lane + 32]);
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) most = max(most, shuffle_xor(most, distance));
    const int limits[2] = {shared.limits[warp_row + lane / 4], shared.limits[warp_row + lane / 4 + 8]};
    const int steps = steps_of(item.tile, boxes);
    const int end = step + steps;
    // Steps that a row of this group sees come first.
    const int seen = most > item.tile.first ? (most - item.tile.first + boxes - 1) / boxes : 0;
    const int last = step + (seen < steps ? seen : steps);

    Rows64<kDim> rows;
    rows.clear();
    StreamScores<kKeys> s;
    StreamWeights<kKeys> weights;
    float alpha[2];
    const auto wait_keys = [&](int of) { mbarrier_wait(shared.full(2 * of), Memory::parity(2 * of)); };
    const auto start_step = [&](int of) { start_scores<T, kDim, kKeys>(opaque(q), shared.slot(2 * of), s); };
    // Leaves the weights in s. The products of P and V may still be under way: o is not touched.
    const auto weigh = [&](int of) {
      release(2 * of);
      const StepList<kKeys>& list = shared.list(of);
      const bool plain = list.plain && scale > 0.0f;
      if (!plain) mask_scores<kKeys>(s, list, limits, scale, opaque(lane));
      softmax<kKeys>(s, plain ? scale : 1.0f, rows.top, rows.sum, alpha);
      pin(s);
    };
    const auto start_adding = [&](int of) {
      const StepList<kKeys>& list = shared.list(of);
      mbarrier_wait(shared.full(2 * of + 1), Memory::parity(2 * of + 1));
      if (!list.plain) spoil_rows<kKeys>(list, limits, rows.sum);
      start_values<T, kDim, kKeys>(shared.slot(2 * of + 1), weights, rows);
    };

    // S of a step is computed before O of the step before, so that softmax runs under the product P V.
    if (step < last) {
      wait_keys(step);
      start_step(step);
      wgmma_wait<0>();
      pin(s);
      weigh(step);
      pack_weights<T, kKeys>(s, weights);
      if (step + 1 < last) wait_keys(step + 1);
      for (; step + 1 < last; ++step) {
        start_step(step + 1);
        start_adding(step);
        wgmma_wait<1>();
        pin(s);
        weigh(step + 1);
        // Of the next round. It stands here because ptxas moves no wait for products across a loop: without
        // one, it waits for P V first and computes all weights afterwards.
        if (step + 2 < last) wait_keys(step + 2);
        wgmma_wait<0>();
        rows.pin_sums();
        release(2 * step + 1);
        rows.rescale(alpha);
        // Not earlier: the registers of P are read until the wait, and wgmma would be made serial (C7513).
        pack_weights<T, kKeys>(s, weights);
      }
      start_adding(step);
      wgmma_wait<0>();
      rows.pin_sums();
      release(2 * step + 1);
      ++step;
    }
    for (int load = 2 * step; load < 2 * end; ++load) {
      mbarrier_wait(shared.full(load), Memory::parity(load));
      release(load);
    }
    step = end;
    named_barrier(barrier, kGroupThreads);  // the group's products have read the rows of q
    write_rows<T, kDim, kKeys>(shared, p, work, item, opaque(warp_row), opaque(lane), rows);
  }
}

}  // namespace ardiff::cuda
