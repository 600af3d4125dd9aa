// SPDX-License-Identifier: Apache-2.0
// The bindings without the CPU kernels: the emulated module is for the launchers only.
#pragma once

#include <stdexcept>

#define ARDIFF_DISPATCH(Return, kernel, argument)                     \
  namespace ardiff::cpu {                                             \
  inline Return kernel(argument) {                                    \
    (void)p;                                                          \
    throw std::logic_error("the emulated module has no CPU kernels"); \
  }                                                                   \
  }
