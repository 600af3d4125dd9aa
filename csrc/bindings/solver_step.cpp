// SPDX-License-Identifier: Apache-2.0
#include "ardiff/solver_step.h"

#include "binding.h"
#include "cpu/dispatch.h"
#include "cuda.h"

ARDIFF_DISPATCH(void, solver_step, const ardiff::SolverStepParams& p)
ARDIFF_LAUNCHER(solver_step, ardiff::SolverStepParamsOf)

using ardiff::bindings::pointer;

namespace {

template <class T>
ardiff::SolverStepParamsOf<T> solver_step_params(std::uintptr_t x, std::uintptr_t outs,
                                                 std::uintptr_t weights, std::uintptr_t coefficients,
                                                 std::uintptr_t history1, std::uintptr_t history2,
                                                 std::uintptr_t history3, std::uintptr_t noise,
                                                 std::uintptr_t keys, std::uintptr_t result,
                                                 std::uintptr_t x0, std::int64_t branches, std::int64_t rows,
                                                 std::int64_t elements) {
  ardiff::SolverStepParamsOf<T> p{};
  p.x = pointer<const T>(x);
  p.outs = pointer<const T>(outs);
  p.weights = pointer<const float>(weights);
  p.coefficients = pointer<const ardiff::SolverRow>(coefficients);
  p.history[0] = pointer<const T>(history1);
  p.history[1] = pointer<const T>(history2);
  p.history[2] = pointer<const T>(history3);
  p.noise = pointer<const T>(noise);
  p.keys = pointer<const std::int64_t>(keys);
  p.result = pointer<T>(result);
  p.x0 = pointer<T>(x0);
  p.branches = branches;
  p.rows = rows;
  p.elements = elements;
  return p;
}

// The coefficient column that is out of range or not 0 although its input is missing, or -1 when all went
// well.
int checked_solver_step(const ardiff::SolverStepParams& p) {
  for (std::int64_t row = 0; row < p.rows; ++row) {
    const ardiff::SolverRow& c = p.coefficients[row];
    if (c.e != 0.0f && !p.noise && !p.keys) return ardiff::kSolverNoise;
    for (int step = 0; step < ardiff::kSolverHistory; ++step) {
      if (c.c[step] != 0.0f && !p.history[step]) return ardiff::kSolverFirstHistory + step;
    }
    if (!(c.limit > 0.0f)) return ardiff::kSolverLimit;
  }
  ardiff::cpu::solver_step(p);
  return -1;
}

}  // namespace

ARDIFF_BINDING(solver_step) {
  ardiff::bindings::def(m, "solver_step", &solver_step_params<float>, &checked_solver_step);
  ARDIFF_DEF_CUDA(m, solver_step, solver_step_params);
}
