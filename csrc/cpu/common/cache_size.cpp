// SPDX-License-Identifier: Apache-2.0
#include "cpu/cache_size.h"

#include <atomic>

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

std::atomic<std::int64_t>& size() {
  static std::atomic<std::int64_t> bytes{find_cache_size()};
  return bytes;
}

}  // namespace

std::int64_t cache_size() { return size().load(std::memory_order_relaxed); }

void set_cache_size(std::int64_t bytes) {
  size().store(bytes < 0 ? find_cache_size() : bytes, std::memory_order_relaxed);
}

}  // namespace ardiff::cpu
