// SPDX-License-Identifier: Apache-2.0
// Normal noise from counter keys: keys [N, 5] -> out [N, E]. Writes 4 bytes per element; about 31 vector
// instructions per vector of Philox and 28 of Box-Muller, so it runs at the speed of the arithmetic, not
// of memory.
#include "philox_simd.h"

namespace ardiff::cpu::ARDIFF_ISA {

void philox_normal(const PhiloxNormalParams& p) {
  for_chunks(p.rows, p.elements, [&p](std::int64_t row, std::int64_t begin, std::int64_t end) {
    float* out = p.out + row * p.elements;
    for_noise(noise_key(p.keys + 5 * row), begin, end,
              [out](std::int64_t i, Vec z, int n) { store_n(out + i, z, n); });
  });
}

}  // namespace ardiff::cpu::ARDIFF_ISA
