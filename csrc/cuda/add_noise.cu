// SPDX-License-Identifier: Apache-2.0
// Forward process with its training target: noisy = signal x0 + sigma eps.
//
//   x0, noise, noisy, target [rows, elements]; signal, sigma float [rows]; keys int64 [rows, 5]
//
// Bytes: x0 (and the noise, where it is given) are read once, noisy (and the target) written once: 2 to 4
// values per element; generated noise stays in registers. 3 FLOPs per element, with Philox about 40 integer
// operations more, still below the time of the bytes. Floor at 3.35 TB/s for 3 latent frames of 480x832 (16
// channels, 299 520 values) with keys and target in float: 3.6 MB, 1.1 us; it is bound by its launch.
//
// One thread per 16-byte pack of one row (row_grid.cuh). A pack starts at a multiple of 4 elements, so it is
// made of whole Philox blocks. Assumes nothing about alignment or sizes.
#include "ardiff/add_noise.h"
#include "launch.cuh"
#include "row_grid.cuh"
#if ARDIFF_KERNELS
#include "noise.cuh"
#endif

namespace ardiff::cuda {

template <class T>
__global__ void add_noise_kernel(AddNoiseParamsOf<T> p);

#if ARDIFF_KERNELS
__device__ inline float target_value(NoiseTarget kind, float signal, float x0, float sigma, float eps) {
  switch (kind) {
    case NoiseTarget::v:
      return noise_target<NoiseTarget::v>(signal, x0, sigma, eps);
    case NoiseTarget::flow:
      return noise_target<NoiseTarget::flow>(signal, x0, sigma, eps);
    default:
      return noise_target<NoiseTarget::eps>(signal, x0, sigma, eps);
  }
}

template <class T>
__global__ void __launch_bounds__(kRowGridThreads) add_noise_kernel(AddNoiseParamsOf<T> p) {
  for_packs<T>(p.rows, p.elements, [&p](std::int64_t row, std::int64_t begin, int n) {
    const std::int64_t offset = row * p.elements + begin;
    const float signal = p.signal[row], sigma = p.sigma[row];
    float x0[kPack<T>], eps[kPack<T>], value[kPack<T>];
    load_pack(p.x0 + offset, n, x0);
    if (p.noise) {
      load_pack(p.noise + offset, n, eps);
    } else {
      normals(noise_key(p.keys + 5 * row), begin, eps);
    }
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) value[i] = noised(signal, x0[i], sigma, eps[i]);
    store_pack(p.noisy + offset, n, value);
    if (p.kind == NoiseTarget::none) return;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) value[i] = target_value(p.kind, signal, x0[i], sigma, eps[i]);
    store_pack(p.target + offset, n, value);
  });
}
#endif

#if ARDIFF_LAUNCHERS
template <class T>
Status add_noise(const AddNoiseParamsOf<T>& p, Stream stream) {
  if (p.rows == 0 || p.elements == 0) return kSuccess;
  const RowGrid g = row_grid<T>(p.rows, p.elements);
  return launch<add_noise_kernel<T>>(g.grid, g.block, stream, p);
}

template Status add_noise(const AddNoiseParamsOf<float>&, Stream);
template Status add_noise(const AddNoiseParamsOf<BFloat16>&, Stream);
template Status add_noise(const AddNoiseParamsOf<Float16>&, Stream);
#endif

}  // namespace ardiff::cuda
