// SPDX-License-Identifier: Apache-2.0
// Forward process with its training target, x0 [N, E] -> noisy [N, E], target [N, E]. One pass: reads x0 and,
// where it is given, the noise; generated noise stays in registers. Floor: 8 to 16 bytes per element over the
// memory bandwidth.
#include "ardiff/add_noise.h"

#include "philox_simd.h"

namespace ardiff::cpu::ARDIFF_ISA {
namespace {

template <NoiseTarget kind>
void run(const AddNoiseParams& p) {
  for_chunks(p.rows, p.elements, [&p](std::int64_t row, std::int64_t begin, std::int64_t end) {
    const std::int64_t offset = row * p.elements;
    const float* x0 = p.x0 + offset;
    float *noisy = p.noisy + offset, *target = p.target + offset;
    const Vec signal = set(p.signal[row]), sigma = set(p.sigma[row]);
    const auto element = [=](std::int64_t i, Vec eps, int n) __attribute__((always_inline)) {
      const Vec x = load_n(x0 + i, n);
      store_n(noisy + i, noised(signal, x, sigma, eps), n);
      if constexpr (kind != NoiseTarget::none)
        store_n(target + i, noise_target<kind>(signal, x, sigma, eps), n);
    };
    if (p.noise) {
      const float* noise = p.noise + offset;
      for_lanes(begin, end, [=](std::int64_t i, int n) { element(i, load_n(noise + i, n), n); });
    } else {
      for_noise(noise_key(p.keys + 5 * row), begin, end, element);
    }
  });
}

}  // namespace

void add_noise(const AddNoiseParams& p) {
  switch (p.kind) {
    case NoiseTarget::none:
      return run<NoiseTarget::none>(p);
    case NoiseTarget::eps:
      return run<NoiseTarget::eps>(p);
    case NoiseTarget::v:
      return run<NoiseTarget::v>(p);
    case NoiseTarget::flow:
      return run<NoiseTarget::flow>(p);
  }
}

}  // namespace ardiff::cpu::ARDIFF_ISA
