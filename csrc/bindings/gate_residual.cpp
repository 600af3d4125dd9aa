// SPDX-License-Identifier: Apache-2.0
#include "ardiff/gate_residual.h"

#include "binding.h"
#include "cpu/dispatch.h"
#include "cuda.h"
#include "frame_ids.h"

ARDIFF_DISPATCH(void, gate_residual, const ardiff::GateResidualParams& p)
ARDIFF_DISPATCH(void, gate_residual_backward, const ardiff::GateResidualBackwardParams& p)
ARDIFF_CHECKED_LAUNCHER(gate_residual, ardiff::GateResidualParamsOf)

namespace py = pybind11;
using ardiff::bindings::pointer;

namespace {

template <class T>
ardiff::GateResidualParamsOf<T> gate_residual_params(std::uintptr_t residual, std::uintptr_t branch,
                                                     std::uintptr_t gate, std::uintptr_t frame_ids,
                                                     std::uintptr_t bias, std::uintptr_t out,
                                                     std::int64_t tokens, std::int64_t width,
                                                     std::int64_t rows, std::int64_t gate_stride) {
  ardiff::GateResidualParamsOf<T> p{};
  p.residual = pointer<const T>(residual);
  p.branch = pointer<const T>(branch);
  p.gate = pointer<const T>(gate);
  p.frame_ids = pointer<const std::int32_t>(frame_ids);
  p.bias = pointer<const T>(bias);
  p.out = pointer<T>(out);
  p.tokens = tokens;
  p.width = width;
  p.rows = rows;
  p.gate_stride = gate_stride;
  return p;
}

// Returns the first token whose id is out of range, before anything is written; -1 when all went well.
std::int64_t checked_gate_residual(const ardiff::GateResidualParams& p) {
  const std::int64_t bad = ardiff::bindings::first_bad_id(p.frame_ids, p.tokens, p.rows);
  if (bad < 0) ardiff::cpu::gate_residual(p);
  return bad;
}

void gate_residual_backward(std::uintptr_t dy, std::uintptr_t branch, std::uintptr_t gate,
                            std::uintptr_t frame_ids, std::uintptr_t bias, std::uintptr_t dbranch,
                            std::uintptr_t dgate, std::uintptr_t dbias, std::int64_t tokens,
                            std::int64_t width, std::int64_t rows, std::int64_t gate_stride) {
  ardiff::GateResidualBackwardParams p{};
  p.dy = pointer<const float>(dy);
  p.branch = pointer<const float>(branch);
  p.gate = pointer<const float>(gate);
  p.frame_ids = pointer<const std::int32_t>(frame_ids);
  p.bias = pointer<const float>(bias);
  p.dbranch = pointer<float>(dbranch);
  p.dgate = pointer<float>(dgate);
  p.dbias = pointer<float>(dbias);
  p.tokens = tokens;
  p.width = width;
  p.rows = rows;
  p.gate_stride = gate_stride;
  ardiff::cpu::gate_residual_backward(p);
}

}  // namespace

ARDIFF_BINDING(gate_residual) {
  ardiff::bindings::def(m, "gate_residual", &gate_residual_params<float>, &checked_gate_residual);
  m.def("gate_residual_backward", &gate_residual_backward, py::call_guard<py::gil_scoped_release>());
  ARDIFF_DEF_CUDA(m, gate_residual, gate_residual_params);
}
