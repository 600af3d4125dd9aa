// SPDX-License-Identifier: Apache-2.0
// Normal noise from counter keys: keys int64 [rows, 5] -> out float [rows, elements].
//
// Bytes: 4 per element, written once. About 25 integer and 15 float operations per element. Floor at 3.35
// TB/s for 299 520 values: 1.2 MB, 0.4 us; it is bound by its launch.
//
// One thread per Philox block of four elements, which is one 16-byte store (row_grid.cuh).
#include "ardiff/philox_normal.h"
#include "launch.cuh"
#include "row_grid.cuh"
#if ARDIFF_KERNELS
#include "noise.cuh"
#endif

namespace ardiff::cuda {

__global__ void philox_normal_kernel(PhiloxNormalParams p);

#if ARDIFF_KERNELS
__global__ void __launch_bounds__(kRowGridThreads) philox_normal_kernel(PhiloxNormalParams p) {
  for_packs<float>(p.rows, p.elements, [&p](std::int64_t row, std::int64_t begin, int n) {
    float z[kPack<float>];
    normals(noise_key(p.keys + 5 * row), begin, z);
    store_pack(p.out + row * p.elements + begin, n, z);
  });
}
#endif

#if ARDIFF_LAUNCHERS
Status philox_normal(const PhiloxNormalParams& p, Stream stream) {
  if (p.rows == 0 || p.elements == 0) return kSuccess;
  const RowGrid g = row_grid<float>(p.rows, p.elements);
  return launch<philox_normal_kernel>(g.grid, g.block, stream, p);
}
#endif

}  // namespace ardiff::cuda
