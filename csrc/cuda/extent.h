// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace ardiff::cuda {

// Blocks of a grid, or threads of a block.
struct Extent {
  unsigned x = 1, y = 1, z = 1;
};

}  // namespace ardiff::cuda
