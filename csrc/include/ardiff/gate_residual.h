// SPDX-License-Identifier: Apache-2.0
// out = residual + gate (branch + bias), one gate row per frame.
// Backward: dbranch = dy gate, dgate = sum of dy (branch + bias) over the tokens of a row, dbias = sum of
// dbranch.
#pragma once

#include <cstdint>

#include "scalar.h"

namespace ardiff {

template <class V>
ARDIFF_HD inline V gated(V residual, V gate, V branch) {
  return fma(gate, branch, residual);
}

struct GateResidualParams {
  const float *residual, *branch;  // [tokens, width]
  const float* gate;               // [M, width], rows strided
  const std::int32_t* frame_ids;   // [tokens]
  const float* bias;               // [width] or null
  float* out;                      // [tokens, width]; may be residual itself
  std::int64_t tokens, width, gate_stride;
};

struct GateResidualBackwardParams {
  const float *dy, *branch;        // [tokens, width]
  const float* gate;               // [rows, width], rows strided
  const std::int32_t* frame_ids;   // [tokens]
  const float* bias;               // [width] or null
  float *dbranch, *dgate, *dbias;  // [tokens, width], [rows, width], [width] or null
  std::int64_t tokens, width, rows, gate_stride;
};

}  // namespace ardiff
