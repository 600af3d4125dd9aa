// SPDX-License-Identifier: Apache-2.0
// The instructions of sm_80 that CUDA C++ has no name for, one function each, and the few built-ins that the
// attention kernels use beside them.
//
// Nothing else in those kernels is specific to a GPU: python_tests/cuda_emulation has this header with the
// same functions for a CPU, so that the very same kernel sources are tested there.
//
// Fragments of mma.m16n8k16, for lane 4 g + t of a warp (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
//   A [16 x 16]  a0: row g, columns 2t, 2t+1;  a1: row g+8;  a2: row g, columns 2t+8, 2t+9;  a3: row g+8,
//   same B [16 x 8]   b0: rows 2t, 2t+1, column g;  b1: rows 2t+8, 2t+9 C [16 x 8]   c0, c1: row g, columns
//   2t, 2t+1;  c2, c3: row g+8
#pragma once

#include "ardiff/integers.h"
#include "ardiff/storage.h"

namespace ardiff::cuda {

// The block's dynamic shared memory.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

__device__ inline std::uint32_t shared_address(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

// Starts a copy of 16 bytes to shared memory, past the L1 cache. bytes = 0: writes zeros and reads nothing.
__device__ inline void copy_async(std::uint32_t shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared),
               "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}

// Closes the group of copies that this thread has started since the last call.
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's groups are under way. Other threads see the data after a
// barrier.
template <int kPending>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16-bit values. Lane 8 i + j gives the address of row j of matrix i; lane 4 g + t
// gets row g, columns 2t and 2t+1 of each.
__device__ inline void load_matrices(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// The same, transposed: lane 4 g + t gets rows 2t and 2t+1, column g of each.
__device__ inline void load_matrices_transposed(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// c += a b, float accumulators.
template <class T>
__device__ inline void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);

template <>
__device__ inline void mma<BFloat16>(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                     std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ inline void mma<Float16>(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                    std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats in 16 bits each, rounded to nearest even; `low` in the low half.
template <class T>
__device__ inline std::uint32_t pack(float low, float high);

template <>
__device__ inline std::uint32_t pack<BFloat16>(float low, float high) {
  std::uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

template <>
__device__ inline std::uint32_t pack<Float16>(float low, float high) {
  std::uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// 2^x in one instruction, relative error below 2^-22; 2^-infinity = 0.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The same value, unknown to the compiler: what is computed from it inside a loop is not kept in registers
// outside.
template <class Integer>
__device__ inline Integer opaque(Integer value) {
  asm volatile("" : "+r"(value));
  return value;
}

__device__ inline float exp2_exact(float x) { return exp2f(x); }
__device__ inline float log2_exact(float x) { return log2f(x); }
__device__ inline float max(float a, float b) { return fmaxf(a, b); }
__device__ inline int max(int a, int b) { return a > b ? a : b; }

__device__ inline float shuffle(float value, int lane) { return __shfl_sync(0xFFFFFFFFu, value, lane); }
__device__ inline float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}
__device__ inline int shuffle_xor(int value, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, value, mask); }
__device__ inline bool any_lane(bool value) { return __any_sync(0xFFFFFFFFu, value); }

__device__ inline void block_barrier() { __syncthreads(); }
__device__ inline void warp_barrier() { __syncwarp(); }

__device__ inline void set_bits(std::int32_t* flags, std::int32_t bits) { atomicOr(flags, bits); }

}  // namespace ardiff::cuda
