// SPDX-License-Identifier: Apache-2.0
// csrc/cuda/sm90/ptx.cuh for the machine of ../../machine.h: mbarriers, bulk tensor copies, proxies.
//
// A bulk copy makes its target NaN when it starts, and brings its data when no thread can go on without it,
// in the order that the test picks: a read before the wait, and a copy into a slot that somebody still reads,
// both show. What ordinary stores wrote is known until their thread fences it: wgmma and copies that meet
// such bytes fail. Not covered: a fence without a barrier after it, and what setmaxnreg does.
#pragma once

#include <cuda.h>

#include "cuda/ptx.cuh"
#include "cuda/tensor_map.h"

namespace ardiff::cuda {

inline emulation::Mbarrier& mbarrier(std::uint32_t address) {
  const auto found = machine().mbarriers.find(address);
  if (found == machine().mbarriers.end()) machine().fail("an mbarrier that was not initialised");
  return found->second;
}

inline void mbarrier_init(std::uint32_t barrier, int arrivals) {
  shared_row(barrier / 16 * 16);
  if (barrier % 8 || arrivals < 1) machine().fail("mbarrier.init operand");
  machine().mbarriers[barrier] = {arrivals, arrivals, 0, {}};
}
inline void mbarrier_init_fence() {}

inline void complete_if_done(emulation::Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.pending = barrier.arrivals;
  ++barrier.phases.rounds;
}

inline void mbarrier_arrive_expect(std::uint32_t address, int bytes) {
  emulation::Mbarrier& barrier = mbarrier(address);
  if (barrier.pending == 0) machine().fail("more arrivals at an mbarrier than it expects");
  barrier.bytes += bytes;
  --barrier.pending;
  complete_if_done(barrier);
}
inline void mbarrier_arrive(std::uint32_t address) { mbarrier_arrive_expect(address, 0); }

inline void mbarrier_wait(std::uint32_t address, int parity) {
  emulation::Mbarrier& barrier = mbarrier(address);
  while (static_cast<int>(barrier.phases.rounds & 1) == parity) {
    machine().wait(barrier.phases, barrier.phases.rounds);
  }
}

// Bits 4-6 of an address are XORed with bits 7-9: the 128-byte swizzle.
inline std::uint32_t swizzled(std::uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// Fails if an ordinary store to these 16 bytes was not fenced.
inline void expect_fenced(std::uint32_t address) {
  if (!machine().unfenced.empty() && machine().unfenced.count(address / 16 * 16))
    machine().fail("shared memory that an ordinary store wrote, without fence.proxy.async");
}

inline void copy_box(std::uint32_t shared, const TensorMap& encoded, int column, int row, int head, int page,
                     std::uint32_t barrier) {
  emulation::EncodedMap map;
  std::memcpy(&map, &encoded, sizeof map);
  if (map.encoded != emulation::EncodedMap::kEncoded) machine().fail("a tensor map that nobody encoded");
  if (shared % 128) machine().fail("cp.async.bulk.tensor operand");
  mbarrier(barrier);
  const int at[4] = {column, row, head, page};
  const int rows = static_cast<int>(map.box[1]), columns = static_cast<int>(map.box[0]);
  struct Row {
    std::uint32_t shared;
    const unsigned char* global;  // null: outside
  };
  std::vector<Row> all;
  for (int r = 0; r < rows; ++r) {
    for (int chunk = 0; chunk < columns / 8; ++chunk) {
      const int from[4] = {at[0] + 8 * chunk, at[1] + r, at[2], at[3]};
      bool inside = true;
      for (int i = 0; i < 4; ++i) {
        inside &= from[i] >= 0 && static_cast<std::uint64_t>(from[i]) < map.sizes[i];
      }
      if (map.sizes[0] % 8) machine().fail("a chunk that is partly outside of the tensor is not emulated");
      const std::uint32_t to = swizzled(shared + static_cast<std::uint32_t>(r * columns * 2 + chunk * 16));
      const unsigned char* global = map.base + 2 * static_cast<std::ptrdiff_t>(from[0]);
      for (int i = 1; i < 4; ++i) {
        global += static_cast<std::ptrdiff_t>(map.strides[i - 1]) * from[i];
      }
      bool known = !inside || machine().readable.empty();
      for (const auto& [begin, size] : machine().readable)
        known |= global >= begin && global + 16 <= begin + size;
      if (!known) machine().fail("a bulk copy reads memory that is not the caller's");
      expect_fenced(to);
      std::memset(shared_row(to), 0xFF, 16);
      all.push_back({to, inside ? global : nullptr});
    }
  }
  ++machine().boxes;
  machine().late.push_back([all, barrier] {
    for (const Row& piece : all) {
      unsigned char* to = machine().shared + (piece.shared - emulation::kSharedBase);
      if (piece.global) {
        std::memcpy(to, piece.global, 16);
      } else {
        std::memset(to, 0, 16);
      }
    }
    emulation::Mbarrier& arrival = machine().mbarriers.at(barrier);
    arrival.bytes -= static_cast<std::int64_t>(16 * all.size());
    complete_if_done(arrival);
  });
}

inline uint4 load_shared(std::uint32_t shared) {
  uint4 x;
  std::memcpy(&x, shared_row(shared), 16);
  return x;
}
inline void store_shared(std::uint32_t shared, const uint4& x) {
  std::memcpy(shared_row(shared), &x, 16);
  machine().unfenced[shared] = machine().current;
}
inline void fence_async() {
  auto& stores = machine().unfenced;
  for (auto it = stores.begin(); it != stores.end();) {
    it = it->second == machine().current ? stores.erase(it) : std::next(it);
  }
}

inline void named_barrier(int barrier, int threads) {
  machine().meet(machine().barriers[barrier], kNamedBarrier, threads, [] {});
}

template <int kRegisters>
inline void give_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "setmaxnreg operand");
}
template <int kRegisters>
inline void take_registers() {
  give_registers<kRegisters>();
}

template <int kValues>
inline void pin(float (&)[kValues]) {}

}  // namespace ardiff::cuda
