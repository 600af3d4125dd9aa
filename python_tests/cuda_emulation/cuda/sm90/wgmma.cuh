// SPDX-License-Identifier: Apache-2.0
// csrc/cuda/sm90/wgmma.cuh for the machine of ../../machine.h, after the PTX ISA's text: descriptors are
// decoded, swizzles undone, fragments laid out as "Register Fragments" prints them.
//
// A product is carried out when its warpgroup waits for it and no thread can go on without it: until then its
// accumulators are NaN, and its operands must stay. Touching accumulators or A registers in between fails; so
// does a product whose registers no wgmma.fence covers, and one over memory that an ordinary store wrote and
// nobody fenced.
#pragma once

#include <array>

#include "cuda/sm90/ptx.cuh"

namespace ardiff::cuda {

// What one thread hands to a product.
struct ProductOperands {
  float* d;
  const std::uint32_t* a;  // null: in shared memory
  std::uint64_t a_matrix, b_matrix;
  bool add;
};

// Accumulators under way: the values that they will have, and how many products still change them.
struct Accumulators {
  std::vector<float> values;
  int products;
};

// What accumulators hold until then: a signalling NaN, which any arithmetic turns into another one.
constexpr std::uint32_t kUnderWay = 0x7FA00001u;

inline std::map<float*, Accumulators>& accumulators() {
  static std::map<float*, Accumulators> all;
  return all;
}

struct Descriptor {
  std::uint32_t start, leading, stride;
  explicit Descriptor(std::uint64_t bits)
      : start(static_cast<std::uint32_t>(bits & 0x3FFF) << 4),
        leading(static_cast<std::uint32_t>(bits >> 16 & 0x3FFF) << 4),
        stride(static_cast<std::uint32_t>(bits >> 32 & 0x3FFF) << 4) {
    if (bits >> 62 != 1) machine().fail("only the 128-byte swizzle is emulated");
    if (bits >> 49 & 7) machine().fail("a base offset is not emulated");
  }
};

// 16 bits of shared memory that wgmma reads, at an address before the swizzle.
template <class T>
double operand(std::uint32_t address) {
  const std::uint32_t at = swizzled(address);
  expect_fenced(at);
  T value;
  std::memcpy(&value, shared_row(at / 16 * 16) + at % 16, 2);
  return widened(value);
}

// "Canonical Layouts", 128-byte swizzle, in values of 16 bits (T = 8):
//   K-major   ((8, m), (T, 2k)) : ((8T, SBO), (1, T))     row r, column k
//   MN-major  ((T, 8, m), (8, k)) : ((1, T, LBO), (8T, SBO))
template <class T>
double k_major(const Descriptor& matrix, int row, int k) {
  return operand<T>(matrix.start + static_cast<std::uint32_t>(row / 8) * matrix.stride +
                    static_cast<std::uint32_t>(row % 8 * 128 + k * 2));
}
template <class T>
double mn_major(const Descriptor& matrix, int n, int k) {
  return operand<T>(matrix.start + static_cast<std::uint32_t>(n / 64) * matrix.leading +
                    static_cast<std::uint32_t>(k / 8) * matrix.stride +
                    static_cast<std::uint32_t>(k % 8 * 128 + n % 64 * 2));
}

using GroupOperands = std::array<ProductOperands, emulation::kGroupThreads>;

template <class T, int kColumns>
void carry_out(const GroupOperands& threads, const std::vector<std::array<std::uint32_t, 4>>& a_before) {
  std::vector<std::array<double, 16>> a(64), b(kColumns);
  const Descriptor b_matrix(threads[0].b_matrix);
  const bool in_registers = threads[0].a != nullptr;
  for (int n = 0; n < kColumns; ++n) {
    for (int k = 0; k < 16; ++k) {
      b[static_cast<std::size_t>(n)][static_cast<std::size_t>(k)] =
          in_registers ? mn_major<T>(b_matrix, n, k) : k_major<T>(b_matrix, n, k);
    }
  }
  for (int thread = 0; thread < emulation::kGroupThreads; ++thread) {
    const ProductOperands& mine = threads[static_cast<std::size_t>(thread)];
    if (!in_registers) break;
    const int row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
    const auto& before = a_before[static_cast<std::size_t>(thread)];
    if (std::memcmp(before.data(), mine.a, 16) != 0)
      machine().fail("A registers of a product changed before it was waited for");
    for (int i = 0; i < 8; ++i) {  // a_i: row + 8 for i in {2, 3, 6, 7}; column + 8 for i >= 4
      a[static_cast<std::size_t>(row + (i & 2 ? 8 : 0))]
       [static_cast<std::size_t>(column + (i & 1) + (i >= 4 ? 8 : 0))] = half_of<T>(mine.a[i / 2], i & 1);
    }
  }
  if (!in_registers) {
    const Descriptor a_matrix(threads[0].a_matrix);
    for (int row = 0; row < 64; ++row) {
      for (int k = 0; k < 16; ++k) {
        a[static_cast<std::size_t>(row)][static_cast<std::size_t>(k)] = k_major<T>(a_matrix, row, k);
      }
    }
  }
  for (int thread = 0; thread < emulation::kGroupThreads; ++thread) {
    const ProductOperands& mine = threads[static_cast<std::size_t>(thread)];
    Accumulators& d = accumulators().at(mine.d);
    for (int i = 0; i < kColumns / 2; ++i) {  // d_i: row + 8 for i & 2; column 8 (i / 4) + 2 t + (i & 1)
      const int row = thread / 32 * 16 + thread % 32 / 4 + (i & 2 ? 8 : 0);
      const int column = i / 4 * 8 + thread % 4 * 2 + (i & 1);
      const auto& left = a[static_cast<std::size_t>(row)];
      const auto& right = b[static_cast<std::size_t>(column)];
      double sum = mine.add ? d.values[static_cast<std::size_t>(i)] : 0.0;
      for (std::size_t k = 0; k < 16; ++k) sum += left[k] * right[k];
      d.values[static_cast<std::size_t>(i)] = static_cast<float>(sum);
    }
    if (--d.products) continue;
    for (int i = 0; i < kColumns / 2; ++i) {
      std::uint32_t bits;
      std::memcpy(&bits, mine.d + i, 4);
      if (bits != kUnderWay) machine().fail("accumulators were touched before the product was waited for");
      mine.d[i] = d.values[static_cast<std::size_t>(i)];
    }
    accumulators().erase(mine.d);
  }
}

template <class T, int kColumns>
void start_product(const ProductOperands& mine) {
  static std::array<GroupOperands, 8> all;  // by warpgroup
  if (!machine().thread().fenced) machine().fail("wgmma without wgmma.fence");
  GroupOperands& operands = all.at(machine().group());
  operands[static_cast<std::size_t>(machine().current % emulation::kGroupThreads)] = mine;
  machine().meet(machine().groups[machine().group()], kProduct, emulation::kGroupThreads, [&] {
    std::vector<std::array<std::uint32_t, 4>> a_before(operands.size());
    for (std::size_t i = 0; i < operands.size(); ++i) {
      const ProductOperands& given = operands[i];
      if (given.a_matrix != operands[0].a_matrix || given.b_matrix != operands[0].b_matrix)
        machine().fail("the descriptors of a warpgroup differ");
      if (given.a) std::memcpy(a_before[i].data(), given.a, 16);
      Accumulators& d = accumulators()[given.d];
      if (d.values.empty()) d.values.assign(given.d, given.d + kColumns / 2);
      ++d.products;
      for (int column = 0; column < kColumns / 2; ++column) std::memcpy(given.d + column, &kUnderWay, 4);
    }
    machine().products[machine().group()].open.push_back(
        [threads = operands, a_before] { carry_out<T, kColumns>(threads, a_before); });
    ++machine().wgmma;
  });
}

template <class T, int kValues>
inline void wgmma_scores(float (&s)[kValues], std::uint64_t a, std::uint64_t b, bool add) {
  start_product<T, 2 * kValues>({s, nullptr, a, b, add});
}
template <class T>
inline void wgmma_values(float (&o)[32], const std::uint32_t (&p)[4], std::uint64_t v) {
  start_product<T, 64>({o, p, 0, v, true});
}

inline void wgmma_fence() { machine().thread().fenced = true; }

inline void wgmma_commit() {
  machine().meet(machine().groups[machine().group()], kProductCommit, emulation::kGroupThreads, [] {
    emulation::Products& products = machine().products[machine().group()];
    products.groups.push_back(std::move(products.open));
    products.open.clear();
  });
}

template <int kPending>
inline void wgmma_wait() {
  const std::size_t group = machine().group();
  emulation::Rendezvous& waits = machine().products[group].waits;
  const unsigned round = waits.rounds;
  machine().meet(machine().groups[group], kProductWait, emulation::kGroupThreads, [group] {
    machine().late.push_back([group] {
      emulation::Products& products = machine().products[group];
      while (products.groups.size() > kPending) {
        for (const auto& product : products.groups.front()) product();
        products.groups.pop_front();
      }
      ++products.waits.rounds;
    });
  });
  if (waits.rounds == round) machine().wait(waits, round);
  machine().thread().fenced = false;
}

}  // namespace ardiff::cuda
