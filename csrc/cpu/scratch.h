// SPDX-License-Identifier: Apache-2.0
// Temporary memory of a kernel, in pieces that begin on cache lines.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace ardiff::cpu::ARDIFF_ISA {

class Scratch {
 public:
  explicit Scratch(std::int64_t bytes)
      : data_(std::aligned_alloc(64, static_cast<std::size_t>((bytes + 127) / 64 * 64))),
        next_(static_cast<char*>(data_)) {
    if (!data_)
      throw std::bad_alloc();  // MemoryError in Python, where the engine frees memory and tries again
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  T* take(std::int64_t count) {
    T* out = reinterpret_cast<T*>(next_);
    next_ += (count * static_cast<std::int64_t>(sizeof(T)) + 63) / 64 * 64;
    return out;
  }

 private:
  void* data_;
  char* next_;
};

}  // namespace ardiff::cpu::ARDIFF_ISA
