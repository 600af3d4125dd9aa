// SPDX-License-Identifier: Apache-2.0
// Slabs: how q, K and V lie in shared memory for wgmma. A slab is rows of 128 bytes (64 values of 16 bits),
// the 16-byte chunk c of row r at chunk c ^ (r % 8). That is the 128-byte swizzle of the copy engine and of
// wgmma; it acts on address bits (4 to 6 ^= 7 to 9), so slabs start at multiples of 1024 bytes.
#pragma once

#include "ardiff/hd.h"
#include "ardiff/integers.h"

namespace ardiff::cuda {

constexpr int kSlabColumns = 64, kSlabRowBytes = 128, kSlabAlignment = 1024;

// Chunk `chunk` of row `row`, counted over slabs that follow one another every `slab_bytes`.
ARDIFF_HD inline std::uint32_t chunk_offset(int slab_bytes, int row, int chunk) {
  return static_cast<std::uint32_t>(chunk / 8 * slab_bytes + row * kSlabRowBytes +
                                    ((chunk % 8) ^ (row % 8)) * 16);
}

// The operand of wgmma that begins at `address`: 64 or more rows by 16 values of them, K-major (a slab's row
// is a row of A or a column of B; the next 16 values begin 32 bytes on), or 16 rows by 64 columns, N-major (a
// slab's row is a row of B). PTX ISA, "Matrix Descriptor Format" and "Canonical Layouts":
//   bits 0-13   address / 16
//   bits 16-29  bytes / 16 between slabs, N-major; not used, as no operand is wider than a slab
//   bits 32-45  bytes / 16 between groups of 8 rows: 64
//   bits 62-63  1: 128-byte swizzle
ARDIFF_HD inline std::uint64_t slab_descriptor(std::uint32_t address) {
  return std::uint64_t{(address & 0x3FFFFu) >> 4} | std::uint64_t{1} << 16 | std::uint64_t{64} << 32 |
         std::uint64_t{1} << 62;
}

}  // namespace ardiff::cuda
