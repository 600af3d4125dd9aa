// SPDX-License-Identifier: Apache-2.0
#include "ardiff/philox_normal.h"

#include "binding.h"
#include "cpu/dispatch.h"
#include "cuda.h"

ARDIFF_DISPATCH(void, philox_normal, const ardiff::PhiloxNormalParams& p)
ARDIFF_ONE_LAUNCHER(philox_normal, const PhiloxNormalParams&)

using ardiff::bindings::pointer;

namespace {

ardiff::PhiloxNormalParams philox_normal_params(std::uintptr_t keys, std::uintptr_t out, std::int64_t rows,
                                                std::int64_t elements) {
  return {pointer<const std::int64_t>(keys), pointer<float>(out), rows, elements};
}

}  // namespace

ARDIFF_BINDING(philox_normal) {
  ardiff::bindings::def(m, "philox_normal", &philox_normal_params, &ardiff::cpu::philox_normal);
  ARDIFF_DEF_ONE(m, "philox_normal", philox_normal_params, philox_normal)
}
