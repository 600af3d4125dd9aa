// SPDX-License-Identifier: Apache-2.0
// y = epilogue(x W^T + b) with packed weights. Panel p of W holds outputs 48 p .. 48 p + 47 for every input:
// panels[p][i][c] = W[48 p + c][i], zero beyond the last output.
//
// Epilogues: none; gelu, the tanh form (bias_gelu.h); gelu_erf, z Phi(z); silu, z / (1 + e^-z); gated, with
// one gate row per frame (gate_residual.h), residual + gate z, or residual + z without gates.
#pragma once

#include "integers.h"
#include "scalar.h"

namespace ardiff {

constexpr std::int64_t kPanelOutputs = 48;

enum class LinearEpilogue { none = 0, gelu = 1, gated = 2, gelu_erf = 3, silu = 4 };

struct LinearParams {
  const float* x;  // [rows, inputs]
  // weight[48 p + c, i] = weights[p panel_stride + i input_stride + c]. Packed panels [ceil(outputs / 48),
  // inputs, 48] have an input_stride of 48; a transposed weight [inputs, >= outputs] a panel_stride of 48.
  const float* weights;
  std::int64_t panel_stride, input_stride;
  const float* bias;  // [outputs] or null
  float* y;           // [rows, outputs]; may be `residual` itself
  std::int64_t rows, inputs, outputs;
  LinearEpilogue epilogue;
  const float *residual, *gate;   // gated: [rows, outputs]; [.., outputs], rows strided, or null
  const std::int32_t* frame_ids;  // gated: [rows]
  std::int64_t gate_stride;
};

struct PackLinearParams {
  const float* weight;  // [outputs, inputs], rows strided
  float* panels;        // [ceil(outputs / 48), inputs, 48]
  std::int64_t outputs, inputs, weight_stride;
};

}  // namespace ardiff
