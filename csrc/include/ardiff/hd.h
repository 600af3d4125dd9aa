// SPDX-License-Identifier: Apache-2.0
// ARDIFF_HD marks a formula that runs on the host and on the device: `ARDIFF_HD inline float f(float x)`.
//
// On the host it is always inlined. The kernels of csrc/cpu are compiled once per instruction set, and an
// out-of-line copy of an inline function would be merged across them by the linker.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define ARDIFF_HD __host__ __device__
#else
#define ARDIFF_HD __attribute__((always_inline))
#endif
