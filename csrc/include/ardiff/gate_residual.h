// SPDX-License-Identifier: Apache-2.0
// out = residual + gate (branch + bias), one gate row per frame.
// Backward: dbranch = dy gate, dgate = sum of dy (branch + bias) over the tokens of a row, dbias = sum of
// dbranch.
#pragma once

#include "integers.h"
#include "scalar.h"

namespace ardiff {

template <class V>
ARDIFF_HD inline V gated(V residual, V gate, V branch) {
  return fma(gate, branch, residual);
}

template <class T>
struct GateResidualParamsOf {
  const T *residual, *branch;     // [tokens, width]
  const T* gate;                  // [rows, width], rows strided
  const std::int32_t* frame_ids;  // [tokens]
  const T* bias;                  // [width] or null
  T* out;                         // [tokens, width]; may be residual itself
  std::int64_t tokens, width, rows, gate_stride;
};
using GateResidualParams = GateResidualParamsOf<float>;

struct GateResidualBackwardParams {
  const float *dy, *branch;        // [tokens, width]
  const float* gate;               // [rows, width], rows strided
  const std::int32_t* frame_ids;   // [tokens]
  const float* bias;               // [width] or null
  float *dbranch, *dgate, *dbias;  // [tokens, width], [rows, width], [width] or null
  std::int64_t tokens, width, rows, gate_stride;
};

}  // namespace ardiff
