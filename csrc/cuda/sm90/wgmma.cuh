// SPDX-License-Identifier: Apache-2.0
// Products of a warpgroup, 64 x n x 16, with float accumulators. Asynchronous: see wgmma_fence, wgmma_commit
// and wgmma_wait of ptx.cuh. Until the wait, nobody may touch the registers.
//
// Warp w of the four holds rows 16 w .. 16 w + 15, as mma.m16n8k16 does (cuda/ptx.cuh): lane 4 g + t has, of
// columns 8 j + 2 t and 8 j + 2 t + 1, d[4 j], d[4 j + 1] in row g and d[4 j + 2], d[4 j + 3] in row g + 8.
//
// Operands in shared memory are slabs (slab.cuh), named by descriptors.
#pragma once

#include "cuda/sm90/ptx.cuh"

namespace ardiff::cuda {

// s [64 x 2 kValues] = a b^T, or += with `add`; both K-major in shared memory.
template <class T, int kValues>
__device__ inline void wgmma_scores(float (&s)[kValues], std::uint64_t a, std::uint64_t b, bool add);

// o [64 x 64] += p v; p in registers, as the A fragment of mma.m16n8k16, v N-major in shared memory: all
// columns of a slab, since narrower operands with this swizzle are in none of the PTX ISA's canonical
// layouts.
template <class T>
__device__ inline void wgmma_values(float (&o)[32], const std::uint32_t (&p)[4], std::uint64_t v);

// clang-format off
#define ARDIFF_O4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ARDIFF_O8(d, i) ARDIFF_O4(d, i), ARDIFF_O4(d, i + 4)
#define ARDIFF_O16(d, i) ARDIFF_O8(d, i), ARDIFF_O8(d, i + 8)
#define ARDIFF_O32(d, i) ARDIFF_O16(d, i), ARDIFF_O16(d, i + 16)
#define ARDIFF_O56(d) ARDIFF_O32(d, 0), ARDIFF_O16(d, 32), ARDIFF_O8(d, 48)
#define ARDIFF_O64(d) ARDIFF_O32(d, 0), ARDIFF_O32(d, 32)
#define ARDIFF_R32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
                   "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ARDIFF_R56 ARDIFF_R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
                              "%48, %49, %50, %51, %52, %53, %54, %55"
#define ARDIFF_R64 ARDIFF_R56 ", %56, %57, %58, %59, %60, %61, %62, %63"

#define ARDIFF_SCORES(T, type, n, kValues, registers, operands, a_, b_, add_)                                   \
  template <>                                                                                                   \
  __device__ inline void wgmma_scores<T, kValues>(float (&s)[kValues], std::uint64_t a, std::uint64_t b,        \
                                                  bool add) {                                                   \
    asm volatile("{\n.reg .pred again;\nsetp.ne.b32 again, " add_ ", 0;\n"                                      \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" registers "}, " a_ ", "   \
                 b_ ", again, 1, 1, 0, 0;\n}\n"                                                                   \
                 : operands : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                      \
  }
#define ARDIFF_VALUES(T, type)                                                                                  \
  template <>                                                                                                   \
  __device__ inline void wgmma_values<T>(float (&o)[32], const std::uint32_t (&p)[4], std::uint64_t v) {        \
    asm volatile("{\n.reg .pred again;\nsetp.ne.b32 again, 1, 0;\n"                                            \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" ARDIFF_R32 "}, "              \
                 "{%32, %33, %34, %35}, %36, again, 1, 1, 1;\n}\n"                                              \
                 : ARDIFF_O32(o, 0) : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v));                      \
  }
#define ARDIFF_WGMMA(T, type)                                                                       \
  ARDIFF_SCORES(T, type, 112, 56, ARDIFF_R56, ARDIFF_O56(s), "%56", "%57", "%58")                   \
  ARDIFF_SCORES(T, type, 128, 64, ARDIFF_R64, ARDIFF_O64(s), "%64", "%65", "%66")                   \
  ARDIFF_VALUES(T, type)
ARDIFF_WGMMA(BFloat16, "bf16")
ARDIFF_WGMMA(Float16, "f16")
// clang-format on
#undef ARDIFF_WGMMA
#undef ARDIFF_VALUES
#undef ARDIFF_SCORES
#undef ARDIFF_R64
#undef ARDIFF_R56
#undef ARDIFF_R32
#undef ARDIFF_O64
#undef ARDIFF_O56
#undef ARDIFF_O32
#undef ARDIFF_O16
#undef ARDIFF_O8
#undef ARDIFF_O4

}  // namespace ardiff::cuda
