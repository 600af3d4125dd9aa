// SPDX-License-Identifier: Apache-2.0
// csrc/cuda/ptx.cuh for the machine of ../machine.h: the same functions, after the PTX ISA's text.
//
// Asynchronous copies are as late as they may be: the target is NaN from the start of the copy until its
// thread waits for it. So a read that is not ordered after the wait, and a copy into memory that another warp
// still reads, both show. Fragment layouts are written down as the PTX ISA prints them, not derived from the
// kernels.
#pragma once

#include "ardiff/integers.h"
#include "ardiff/storage.h"
#include "cuda_runtime.h"

namespace ardiff::cuda {

enum Instruction {
  kLoadMatrices,
  kLoadTransposed,
  kMma,
  kShuffle,
  kShuffleXor,
  kVote,
  kBlockBarrier,
  kWarpBarrier,
  kNamedBarrier,
  kProduct,
  kProductCommit,
  kProductWait
};

inline emulation::Machine& machine() { return emulation::Machine::get(); }

inline unsigned char* shared_memory() { return machine().shared; }

inline std::uint32_t shared_address(const void* shared) {
  return emulation::kSharedBase +
         static_cast<std::uint32_t>(static_cast<const unsigned char*>(shared) - machine().shared);
}

// 16 bytes of shared memory
inline unsigned char* shared_row(std::uint32_t address) {
  const std::uint32_t at = address - emulation::kSharedBase;  // wraps for an address before the first
  if (address % 16 || at >= machine().shared_bytes || at + 16 > machine().shared_bytes)
    machine().fail("a shared address is out of range");
  return machine().shared + at;
}

inline void copy_async(std::uint32_t shared, const void* global, int bytes) {
  const auto* from = static_cast<const unsigned char*>(global);
  bool known = bytes == 0 || machine().readable.empty();
  for (const auto& [begin, size] : machine().readable) known |= from >= begin && from + bytes <= begin + size;
  if (!known) machine().fail("cp.async reads memory that is not the caller's");
  if (reinterpret_cast<std::uintptr_t>(from) % 16 || (bytes != 0 && bytes != 16))
    machine().fail("cp.async operand");
  std::memset(shared_row(shared), 0xFF, 16);
  machine().thread().groups.back().push_back({shared, global, bytes});
  ++machine().copies;
}

inline void copy_async_commit() { machine().thread().groups.emplace_back(); }

template <int kPending>
inline void copy_async_wait() {
  auto& groups = machine().thread().groups;
  while (groups.size() > kPending + 1) {
    for (const emulation::Copy& copy : groups.front()) {
      unsigned char row[16] = {};
      std::memcpy(row, copy.global, static_cast<std::size_t>(copy.bytes));
      std::memcpy(shared_row(copy.shared), row, 16);
    }
    groups.erase(groups.begin());
  }
}

struct Registers {
  std::uint32_t r[4];
};

// Element (row, column) of matrix m, 16 bits.
inline void load_matrices(std::uint32_t (&r)[4], std::uint32_t address, bool transposed) {
  const auto out = machine().warp_instruction<std::uint32_t, Registers>(
      transposed ? kLoadTransposed : kLoadMatrices, address,
      [&](const std::uint32_t* addresses, Registers* result) {
        for (int m = 0; m < 4; ++m) {
          std::uint16_t matrix[8][8];
          unsigned columns = 0;
          for (int row = 0; row < 8; ++row) {
            const std::uint32_t from = addresses[8 * m + row];
            std::memcpy(matrix[row], shared_row(from), 16);
            columns |= 1u << from / 16 % 8;
          }
          machine().bank_conflicts += columns != 0xFF;
          for (int lane = 0; lane < 32; ++lane) {
            const int row = lane / 4, column = lane % 4 * 2;
            const std::uint16_t low = transposed ? matrix[column][row] : matrix[row][column];
            const std::uint16_t high = transposed ? matrix[column + 1][row] : matrix[row][column + 1];
            result[lane].r[m] = low | static_cast<std::uint32_t>(high) << 16;
          }
        }
      });
  std::memcpy(r, out.r, sizeof out.r);
}

inline void load_matrices(std::uint32_t (&r)[4], std::uint32_t address) { load_matrices(r, address, false); }
inline void load_matrices_transposed(std::uint32_t (&r)[4], std::uint32_t address) {
  load_matrices(r, address, true);
}

struct MmaInput {
  float c[4];
  std::uint32_t a[4], b[2];
};
struct MmaOutput {
  float c[4];
};

template <class T>
double half_of(std::uint32_t both, int which) {
  return widened(T{static_cast<std::uint16_t>(both >> 16 * which)});
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": group = lane / 4, in_group = lane %
// 4;
//   a_i: row = group, + 8 for i in {2, 3, 6, 7}; column = in_group * 2 + (i & 1), + 8 for i >= 4
//   b_i: row = in_group * 2 + (i & 1), + 8 for i >= 2; column = group
//   c_i: row = group, + 8 for i >= 2; column = in_group * 2 + (i & 1)
template <class T>
inline void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  MmaInput in;
  std::memcpy(in.c, c, sizeof c);
  std::memcpy(in.a, a, sizeof a);
  in.b[0] = b0;
  in.b[1] = b1;
  const auto out =
      machine().warp_instruction<MmaInput, MmaOutput>(kMma, in, [&](const MmaInput* all, MmaOutput* result) {
        double left[16][16], right[16][8];
        for (int lane = 0; lane < 32; ++lane) {
          const int group = lane / 4, in_group = lane % 4;
          for (int i = 0; i < 8; ++i) {
            const int row = group + (i & 2 ? 8 : 0), column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
            left[row][column] = half_of<T>(all[lane].a[i / 2], i & 1);
          }
          for (int i = 0; i < 4; ++i) {
            right[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group] = half_of<T>(all[lane].b[i / 2], i & 1);
          }
        }
        for (int lane = 0; lane < 32; ++lane) {
          const int group = lane / 4, in_group = lane % 4;
          for (int i = 0; i < 4; ++i) {
            const int row = group + (i >= 2 ? 8 : 0), column = in_group * 2 + (i & 1);
            double sum = all[lane].c[i];
            for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
            result[lane].c[i] = static_cast<float>(sum);
          }
        }
        ++machine().mma;
      });
  std::memcpy(c, out.c, sizeof c);
}

template <class T>
inline std::uint32_t pack(float low, float high) {
  return stored<T>(low).bits | static_cast<std::uint32_t>(stored<T>(high).bits) << 16;
}

template <class Integer>
inline Integer opaque(Integer value) {
  return value;
}
inline float exp2_fast(float x) { return std::exp2(x); }
inline float exp2_exact(float x) { return std::exp2(x); }
inline float log2_exact(float x) { return std::log2(x); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline int max(int a, int b) { return a > b ? a : b; }

template <class Value, class From>
Value exchange(Instruction kind, Value value, int operand, From from) {
  struct In {
    Value value;
    int operand;
  };
  return machine().warp_instruction<In, Value>(kind, {value, operand}, [&](const In* in, Value* out) {
    for (int lane = 0; lane < 32; ++lane) out[lane] = in[from(lane, in[lane].operand)].value;
  });
}

inline float shuffle(float value, int lane) {
  return exchange(kShuffle, value, lane, [](int, int source) { return source % 32; });
}
inline float shuffle_xor(float value, int mask) {
  return exchange(kShuffleXor, value, mask, [](int lane, int bits) { return lane ^ bits; });
}
inline int shuffle_xor(int value, int mask) {
  return exchange(kShuffleXor, value, mask, [](int lane, int bits) { return lane ^ bits; });
}
inline bool any_lane(bool value) {
  return machine().warp_instruction<bool, bool>(kVote, value, [](const bool* in, bool* out) {
    bool any = false;
    for (int lane = 0; lane < 32; ++lane) any |= in[lane];
    for (int lane = 0; lane < 32; ++lane) out[lane] = any;
  });
}

inline void block_barrier() {
  machine().meet(machine().block, kBlockBarrier, static_cast<int>(machine().threads.size()), [] {});
}
inline void warp_barrier() {
  machine().meet(machine().warps[static_cast<std::size_t>(machine().warp())], kWarpBarrier, 32, [] {});
}

inline void set_bits(std::int32_t* flags, std::int32_t bits) { *flags |= bits; }

}  // namespace ardiff::cuda
