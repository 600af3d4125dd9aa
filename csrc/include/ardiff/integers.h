// SPDX-License-Identifier: Apache-2.0
// The integers of <cstdint>. NVRTC has no standard headers, so there they are declared here.
#pragma once

#if defined(__CUDACC_RTC__)
namespace std {
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
using uintptr_t = unsigned long long;
}  // namespace std
#else
#include <cstdint>
#endif
