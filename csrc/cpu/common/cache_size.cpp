// SPDX-License-Identifier: Apache-2.0
#include "cpu/cache_size.h"

#if defined(__linux__)
#include <unistd.h>
#endif

namespace ardiff::cpu {
namespace {

std::int64_t find_cache_size() {
  constexpr std::int64_t kUsual = 32 << 20;
#if defined(_SC_LEVEL3_CACHE_SIZE)
  const std::int64_t found = sysconf(_SC_LEVEL3_CACHE_SIZE);
  if (found > 0) return found;
#endif
  return kUsual;
}

}  // namespace

std::int64_t cache_size() {
  static const std::int64_t size = find_cache_size();
  return size;
}

}  // namespace ardiff::cpu
