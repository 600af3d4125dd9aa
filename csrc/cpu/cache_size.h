// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace ardiff::cpu {

std::int64_t cache_size();  // bytes of the largest cache of this machine

}  // namespace ardiff::cpu
