// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace ardiff::bindings {

// The first token whose row lies outside 0 .. rows-1, or -1.
inline std::int64_t first_bad_id(const std::int32_t* ids, std::int64_t tokens, std::int64_t rows) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (ids[t] < 0 || ids[t] >= rows) return t;
  }
  return -1;
}

}  // namespace ardiff::bindings
