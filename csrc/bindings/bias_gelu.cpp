// SPDX-License-Identifier: Apache-2.0
#include "ardiff/bias_gelu.h"

#include "binding.h"
#include "cpu/dispatch.h"

ARDIFF_DISPATCH(void, bias_gelu, const ardiff::BiasGeluParams& p)
ARDIFF_DISPATCH(void, bias_gelu_backward, const ardiff::BiasGeluBackwardParams& p)

using ardiff::bindings::pointer;

namespace {

ardiff::BiasGeluParams forward_params(std::uintptr_t x, std::uintptr_t bias, std::uintptr_t y,
                                      std::int64_t tokens, std::int64_t width) {
  return {pointer<const float>(x), pointer<const float>(bias), pointer<float>(y), tokens, width};
}

ardiff::BiasGeluBackwardParams backward_params(std::uintptr_t dy, std::uintptr_t x, std::uintptr_t bias,
                                               std::uintptr_t dx, std::uintptr_t dbias, std::int64_t tokens,
                                               std::int64_t width) {
  return {pointer<const float>(dy),
          pointer<const float>(x),
          pointer<const float>(bias),
          pointer<float>(dx),
          pointer<float>(dbias),
          tokens,
          width};
}

}  // namespace

ARDIFF_BINDING(bias_gelu) {
  ardiff::bindings::def(m, "bias_gelu", &forward_params, &ardiff::cpu::bias_gelu);
  ardiff::bindings::def(m, "bias_gelu_backward", &backward_params, &ardiff::cpu::bias_gelu_backward);
}
