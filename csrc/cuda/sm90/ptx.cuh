// SPDX-License-Identifier: Apache-2.0
// The instructions of sm_90a that CUDA C++ has no name for, one function each, beside those of cuda/ptx.cuh:
// mbarriers, bulk tensor copies, proxies, registers, and the bookkeeping of wgmma (the products themselves
// are in wgmma.cuh). python_tests/cuda_emulation has the same functions for a CPU.
//
// Two proxies reach shared memory: ordinary loads and stores (generic), and the copy engine and wgmma
// (async). What the one wrote, the other sees after a fence (`fence_async`), except that waiting for a copy's
// mbarrier shows its data to ordinary loads too.
#pragma once

#include "cuda/ptx.cuh"
#include "cuda/tensor_map.h"

namespace ardiff::cuda {

// An mbarrier whose phases complete after `arrivals` arrivals and all bytes that were announced.
__device__ inline void mbarrier_init(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised mbarriers known to the copy engine; other threads learn of them by a barrier.
__device__ inline void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void mbarrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and announces bytes that copies will bring in this phase.
__device__ inline void mbarrier_arrive_expect(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Waits until the phase of this parity is complete. Phases are numbered from 0; of a fresh mbarrier, the one
// before (parity 1) is. A phase that never completes is a mistake of this kernel: it traps, after seconds,
// so that the mistake is an error at the next synchronisation and not a GPU that hangs.
__device__ inline void mbarrier_wait(std::uint32_t barrier, int parity) {
  constexpr std::uint64_t kMostNanoseconds = 10'000'000'000;  // a step takes microseconds
  std::uint64_t began = 0;
  for (std::uint32_t tries = 1;; ++tries) {
    std::uint32_t done = 0;
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
        "selp.u32 %0, 1, 0, complete;\n"
        "}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    if (done != 0) return;
    if (tries % 1024 != 0) continue;
    std::uint64_t now = 0;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    if (began == 0) began = now;
    if (now - began > kMostNanoseconds) __trap();
  }
}

// Starts the copy of one box of a 4-D tensor to shared memory; its bytes count towards the mbarrier. What
// lies outside of the tensor becomes zero, and counts as well. One thread calls it.
__device__ inline void copy_box(std::uint32_t shared, const TensorMap& map, int column, int row, int head,
                                int page, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, "
      "%4, %5}], [%6];" ::"r"(shared),
      "l"(reinterpret_cast<std::uint64_t>(&map)), "r"(column), "r"(row), "r"(head), "r"(page), "r"(barrier)
      : "memory");
}

// 16 bytes of shared memory that wgmma or the copy engine also reach.
__device__ inline uint4 load_shared(std::uint32_t shared) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(shared)
               : "memory");
  return x;
}
__device__ inline void store_shared(std::uint32_t shared, const uint4& x) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w)
               : "memory");
}

// This thread's stores to shared memory are seen by wgmma and the copy engine; for those that other threads
// start, a barrier comes in between.
__device__ inline void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier of `threads` threads, whole warps; 0 is __syncthreads.
__device__ inline void named_barrier(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Registers per thread of this warpgroup from here on.
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Before the first wgmma, and whenever its registers were touched by anything else.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kPending of the committed groups of this warpgroup are under way.
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Values are computed before this point, and used after it: the compiler moves arithmetic on registers across
// the waits above, which to it have nothing to do with them.
template <int kValues>
__device__ __forceinline__ void pin(float (&values)[kValues]) {
#pragma unroll
  for (int i = 0; i < kValues; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

}  // namespace ardiff::cuda
