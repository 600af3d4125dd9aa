// SPDX-License-Identifier: Apache-2.0
// One step of a linear solver: x0 = clamp(p x + q out), x' = a x + b x0 + e eps + c1 h1 + c2 h2, out = sum of
// weights[branch] * outs[branch]. A term whose coefficient is 0 is not read.
#pragma once

#include "integers.h"
#include "scalar.h"

namespace ardiff {

struct SolverRow {
  float p, q, a, b, e, c1, c2;
};
constexpr int kSolverNoise = 4, kSolverHistory1 = 5,
              kSolverHistory2 = 6;  // columns that need a further input

template <class V>
ARDIFF_HD inline V predicted_clean(V p, V x, V q, V out) {
  return fma(p, x, q * out);
}

template <class V>
ARDIFF_HD inline V advanced(V a, V x, V b, V x0) {
  return fma(a, x, b * x0);
}

template <class T>
struct SolverStepParamsOf {
  const T* x;                            // [rows, elements]
  const T* outs;                         // [branches, rows, elements]
  const float* weights;                  // [branches, rows]
  const SolverRow* coefficients;         // [rows]
  const T *history1, *history2, *noise;  // [rows, elements] or null
  const std::int64_t* keys;              // [rows, 5] or null
  T *result, *x0;                        // [rows, elements]
  std::int64_t branches, rows, elements;
  float clamp;  // infinity: none
};
using SolverStepParams = SolverStepParamsOf<float>;

}  // namespace ardiff
