// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace ardiff::cpu {

std::int64_t cache_size();                // bytes of the largest cache of this machine
void set_cache_size(std::int64_t bytes);  // for tests; below 0: what the machine has

}  // namespace ardiff::cpu
