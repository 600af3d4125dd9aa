// SPDX-License-Identifier: Apache-2.0
// One step of a linear solver: x0 = p x + q out within [-limit, limit], out = sum of weights[branch] *
// outs[branch]; x' = a x + b x0 + e eps + c1 h1 + c2 h2 + c3 h3, where h are the x0 of earlier steps. A term
// whose coefficient is 0 is not read.
#pragma once

#include "integers.h"
#include "scalar.h"

namespace ardiff {

constexpr int kSolverHistory = 3;  // the most earlier steps that a solver looks back to

struct SolverRow {
  float p, q, a, b, e;
  float c[kSolverHistory];
  float limit;  // infinity: none
};
// Columns that need a further input or have a range.
constexpr int kSolverNoise = 4, kSolverFirstHistory = 5, kSolverLimit = 8;

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
  const T* x;                        // [rows, elements]
  const T* outs;                     // [branches, rows, elements]
  const float* weights;              // [branches, rows]
  const SolverRow* coefficients;     // [rows]
  const T* history[kSolverHistory];  // each [rows, elements] or null, the latest first
  const T* noise;                    // [rows, elements] or null
  const std::int64_t* keys;          // [rows, 5] or null
  T *result, *x0;                    // [rows, elements]
  std::int64_t branches, rows, elements;
};
using SolverStepParams = SolverStepParamsOf<float>;

}  // namespace ardiff
