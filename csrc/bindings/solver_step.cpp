// SPDX-License-Identifier: Apache-2.0
#include "ardiff/solver_step.h"

#include "binding.h"
#include "cpu/dispatch.h"

ARDIFF_DISPATCH(void, solver_step, const ardiff::SolverStepParams& p)

namespace py = pybind11;
using ardiff::bindings::pointer;

namespace {

// The coefficient column that is not 0 although its input is missing, or -1.
int missing_input(const ardiff::SolverStepParams& p) {
  for (std::int64_t row = 0; row < p.rows; ++row) {
    const ardiff::SolverRow& c = p.coefficients[row];
    if (c.e != 0.0f && !p.noise && !p.keys) return ardiff::kSolverNoise;
    if (c.c1 != 0.0f && !p.history1) return ardiff::kSolverHistory1;
    if (c.c2 != 0.0f && !p.history2) return ardiff::kSolverHistory2;
  }
  return -1;
}

int solver_step(std::uintptr_t x, std::uintptr_t outs, std::uintptr_t weights, std::uintptr_t coefficients,
                std::uintptr_t history1, std::uintptr_t history2, std::uintptr_t noise, std::uintptr_t keys,
                std::uintptr_t result, std::uintptr_t x0, std::int64_t branches, std::int64_t rows,
                std::int64_t elements, float clamp) {
  ardiff::SolverStepParams p{};
  p.x = pointer<const float>(x);
  p.outs = pointer<const float>(outs);
  p.weights = pointer<const float>(weights);
  p.coefficients = pointer<const ardiff::SolverRow>(coefficients);
  p.history1 = pointer<const float>(history1);
  p.history2 = pointer<const float>(history2);
  p.noise = pointer<const float>(noise);
  p.keys = pointer<const std::int64_t>(keys);
  p.result = pointer<float>(result);
  p.x0 = pointer<float>(x0);
  p.branches = branches;
  p.rows = rows;
  p.elements = elements;
  p.clamp = clamp;
  const int missing = missing_input(p);
  if (missing < 0) ardiff::cpu::solver_step(p);
  return missing;
}

}  // namespace

ARDIFF_BINDING(solver_step) { m.def("solver_step", &solver_step, py::call_guard<py::gil_scoped_release>()); }
