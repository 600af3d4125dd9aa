// SPDX-License-Identifier: Apache-2.0
// Three compilers read csrc/cuda:
//
//   nvcc               kernels and launchers; a launcher starts its kernels (launch.cuh)
//   NVRTC              kernels, one at a time, at first use
//   the host compiler  launchers; a launcher lists what it would start (launch_list.h, ARDIFF_LAUNCH_LIST)
//
// So which kernels a call takes, with which grid and arguments, is written once, in the launcher, and holds
// for kernels compiled ahead of time and for those that NVRTC compiles on a machine without nvcc.
#pragma once

#if defined(ARDIFF_LAUNCH_LIST)
#define ARDIFF_KERNELS 0
#else
#define ARDIFF_KERNELS 1
#endif

#if defined(__CUDACC_RTC__)
#define ARDIFF_LAUNCHERS 0
#else
#define ARDIFF_LAUNCHERS 1
#endif
