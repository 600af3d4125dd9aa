// SPDX-License-Identifier: Apache-2.0
// One solver step with guidance and noise: x [rows, elements], outs [branches, rows, elements] -> x', x0.
//
//   out = sum of weights[b] outs[b];  x0 = p x + q out within [-limit, limit]
//   x' = a x + b x0 + e eps + c1 h1 + c2 h2 + c3 h3
//
// Bytes: x and the branches with a weight are read once, x' and x0 written once: branches + 3 values per
// element. A term whose coefficient is 0 is not read: its memory may hold anything. 2 branches + 8 FLOPs per
// element. Floor at 3.35 TB/s for 3 latent frames of 480x832 in float, one branch: 4.8 MB, 1.4 us.
//
// One thread per 16-byte pack of one row (row_grid.cuh); the coefficients of a row are uniform in a warp
// unless rows are short. A term that is needed and missing (null pointer) makes its row NaN: the host cannot
// look at coefficients on the device without a stall.
#include "ardiff/solver_step.h"
#include "launch.cuh"
#include "row_grid.cuh"
#if ARDIFF_KERNELS
#include "noise.cuh"
#endif

namespace ardiff::cuda {

template <class T>
__global__ void solver_step_kernel(SolverStepParamsOf<T> p);

#if ARDIFF_KERNELS
// y += coefficient * source[0 .. n); NaN where there is no source.
template <class T>
__device__ inline void add_term(float coefficient, const T* source, std::int64_t offset, int n,
                                float (&y)[kPack<T>]) {
  if (coefficient == 0.0f) return;
  float value[kPack<T>];
  if (source) {
    load_pack(source + offset, n, value);
  } else {
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) value[i] = float_of_bits(0x7FC00000u);
  }
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) y[i] = fma(coefficient, value[i], y[i]);
}

template <class T>
__global__ void __launch_bounds__(kRowGridThreads) solver_step_kernel(SolverStepParamsOf<T> p) {
  for_packs<T>(p.rows, p.elements, [&p](std::int64_t row, std::int64_t begin, int n) {
    const SolverRow c = p.coefficients[row];
    const std::int64_t offset = row * p.elements + begin;
    float x[kPack<T>], x0[kPack<T>] = {}, y[kPack<T>];
    for (std::int64_t branch = 0; branch < p.branches; ++branch) {
      add_term(p.weights[branch * p.rows + row], p.outs + branch * p.rows * p.elements, offset, n, x0);
    }
    load_pack(p.x + offset, n, x);
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
      x0[i] = predicted_clean(c.p, x[i], c.q, x0[i]);
      // Written so that NaN stays NaN.
      x0[i] = x0[i] > c.limit ? c.limit : x0[i] < -c.limit ? -c.limit : x0[i];
      y[i] = advanced(c.a, x[i], c.b, x0[i]);
    }
    if (c.e != 0.0f && p.keys) {
      float eps[kPack<T>];
      normals(noise_key(p.keys + 5 * row), begin, eps);
#pragma unroll
      for (int i = 0; i < kPack<T>; ++i) y[i] = fma(c.e, eps[i], y[i]);
    } else {
      add_term(c.e, p.noise, offset, n, y);
    }
#pragma unroll
    for (int step = 0; step < kSolverHistory; ++step) add_term(c.c[step], p.history[step], offset, n, y);
    store_pack(p.x0 + offset, n, x0);
    store_pack(p.result + offset, n, y);
  });
}
#endif

#if ARDIFF_LAUNCHERS
template <class T>
Status solver_step(const SolverStepParamsOf<T>& p, Stream stream) {
  if (p.rows == 0 || p.elements == 0) return kSuccess;
  const RowGrid g = row_grid<T>(p.rows, p.elements);
  return launch<solver_step_kernel<T>>(g.grid, g.block, stream, p);
}

template Status solver_step(const SolverStepParamsOf<float>&, Stream);
template Status solver_step(const SolverStepParamsOf<BFloat16>&, Stream);
template Status solver_step(const SolverStepParamsOf<Float16>&, Stream);
#endif

}  // namespace ardiff::cuda
