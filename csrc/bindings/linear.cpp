// SPDX-License-Identifier: Apache-2.0
#include "ardiff/linear.h"

#include "binding.h"
#include "cpu/dispatch.h"
#include "frame_ids.h"
#include "shared_kernels.h"

ARDIFF_DISPATCH(void, pack_linear, const ardiff::PackLinearParams& p)

using ardiff::bindings::pointer;

namespace {

ardiff::LinearParams linear_params(std::uintptr_t x, std::uintptr_t panels, std::uintptr_t bias,
                                   std::uintptr_t y, std::int64_t rows, std::int64_t inputs,
                                   std::int64_t outputs, int epilogue) {
  ardiff::LinearParams p{};
  p.x = pointer<const float>(x);
  p.weights = pointer<const float>(panels);
  p.panel_stride = inputs * ardiff::kPanelOutputs;
  p.input_stride = ardiff::kPanelOutputs;
  p.bias = pointer<const float>(bias);
  p.y = pointer<float>(y);
  p.rows = rows;
  p.inputs = inputs;
  p.outputs = outputs;
  p.epilogue = static_cast<ardiff::LinearEpilogue>(epilogue);
  return p;
}

ardiff::PackLinearParams pack_params(std::uintptr_t weight, std::uintptr_t panels, std::int64_t outputs,
                                     std::int64_t inputs, std::int64_t weight_stride) {
  return {pointer<const float>(weight), pointer<float>(panels), outputs, inputs, weight_stride};
}

}  // namespace

ARDIFF_BINDING(linear) {
  ardiff::bindings::def(m, "linear", &linear_params, &ardiff::cpu::linear);
  ardiff::bindings::def(m, "pack_linear", &pack_params, &ardiff::cpu::pack_linear);
}
