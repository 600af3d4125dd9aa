// SPDX-License-Identifier: Apache-2.0
// Picks the instruction set at run time. A kernel `void scale(const ScaleParams&)` of csrc/cpu/scale.cpp
// exists in each of the namespaces ardiff::cpu::{scalar,avx2,avx512}; its binding writes, at namespace scope,
//
//   ARDIFF_DISPATCH(void, scale, const ardiff::ScaleParams& p)    // return type, kernel, its one argument
//   named p
//
// and calls `ardiff::cpu::scale(params)`. Kernel files themselves never include this header's choice.
#pragma once

namespace ardiff::cpu {

enum class Isa { scalar = 0, avx2 = 1, avx512 = 2 };

const char* isa_name(Isa isa);
bool isa_supported(Isa isa);  // built into this module, and this machine has it
Isa active_isa();       // the best supported one; ARDIFF_ISA=scalar|avx2|avx512 in the environment chooses
bool set_isa(Isa isa);  // for tests; false where it is not supported

}  // namespace ardiff::cpu

#if defined(ARDIFF_X86)
#define ARDIFF_DISPATCH(Return, kernel, argument) \
  namespace ardiff::cpu {                         \
  namespace scalar {                              \
  Return kernel(argument);                        \
  }                                               \
  namespace avx2 {                                \
  Return kernel(argument);                        \
  }                                               \
  namespace avx512 {                              \
  Return kernel(argument);                        \
  }                                               \
  static inline Return kernel(argument) {         \
    switch (active_isa()) {                       \
      case Isa::avx512:                           \
        return avx512::kernel(p);                 \
      case Isa::avx2:                             \
        return avx2::kernel(p);                   \
      default:                                    \
        return scalar::kernel(p);                 \
    }                                             \
  }                                               \
  }
#else
#define ARDIFF_DISPATCH(Return, kernel, argument)                     \
  namespace ardiff::cpu {                                             \
  namespace scalar {                                                  \
  Return kernel(argument);                                            \
  }                                                                   \
  static inline Return kernel(argument) { return scalar::kernel(p); } \
  }
#endif
