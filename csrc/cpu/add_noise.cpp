// SPDX-License-Identifier: Apache-2.0
// Forward process with its training target, x0 [N, E] -> noisy [N, E], target [N, E]. One pass: reads x0 and,
// where it is given, the noise; generated noise stays in registers and L1. Floor: 8 to 16 bytes per element
// over the memory bandwidth.
#include "ardiff/add_noise.h"

#include "philox_simd.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

template <NoiseTarget kind, bool streaming>
void run(const AddNoiseParams& p) {
  for_chunks(p.rows, p.elements, [&p](std::int64_t row, std::int64_t begin, std::int64_t end) {
    const std::int64_t offset = row * p.elements;
    const float* x0 = p.x0 + offset;
    float *noisy = p.noisy + offset, *target = p.target + offset;
    const Vec signal = set(p.signal[row]), sigma = set(p.sigma[row]);
    const auto element = [=](std::int64_t i, Vec eps, int n) __attribute__((always_inline)) {
      const Vec x = load_n(x0 + i, n);
      prefetch(x0 + i + kAhead);
      put_n<streaming>(noisy + i, noised(signal, x, sigma, eps), n);
      if constexpr (kind != NoiseTarget::none)
        put_n<streaming>(target + i, noise_target<kind>(signal, x, sigma, eps), n);
    };
    if (p.noise) {
      const float* noise = p.noise + offset;
      for_lanes(begin, end, [=](std::int64_t i, int n) __attribute__((always_inline)) {
        prefetch(noise + i + kAhead);
        element(i, load_n(noise + i, n), n);
      });
    } else {
      for_noise(noise_key(p.keys + 5 * row), begin, end, element);
    }
  });
}

template <NoiseTarget kind>
void choose(const AddNoiseParams& p) {
  const std::int64_t arrays = 2 + (p.noise ? 1 : 0) + (kind != NoiseTarget::none ? 1 : 0);
  const std::int64_t values = arrays * p.rows * p.elements;
  if (p.elements % Vec::width == 0 && worth_streaming(p.noisy, values) && worth_streaming(p.target, values)) {
    run<kind, true>(p);
  } else {
    run<kind, false>(p);
  }
}

}  // namespace

void add_noise(const AddNoiseParams& p) {
  switch (p.kind) {
    case NoiseTarget::none:
      return choose<NoiseTarget::none>(p);
    case NoiseTarget::eps:
      return choose<NoiseTarget::eps>(p);
    case NoiseTarget::v:
      return choose<NoiseTarget::v>(p);
    case NoiseTarget::flow:
      return choose<NoiseTarget::flow>(p);
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
