// SPDX-License-Identifier: Apache-2.0
#include "ardiff/modulate.h"

#include "binding.h"
#include "cpu/dispatch.h"
#include "cuda.h"
#include "frame_ids.h"
#include "shared_kernels.h"

ARDIFF_DISPATCH(void, modulate_backward, const ardiff::ModulateBackwardParams& p)
ARDIFF_CHECKED_LAUNCHER(modulate, ardiff::ModulateParamsOf)

namespace py = pybind11;
using ardiff::bindings::pointer;

namespace {

template <class T>
ardiff::ModulateParamsOf<T> modulate_params(std::uintptr_t x, std::uintptr_t shift, std::uintptr_t scale,
                                            std::uintptr_t frame_ids, std::uintptr_t y, std::uintptr_t normed,
                                            std::int64_t tokens, std::int64_t width, std::int64_t rows,
                                            std::int64_t shift_stride, std::int64_t scale_stride, int norm,
                                            float eps) {
  ardiff::ModulateParamsOf<T> p{};
  p.x = pointer<const T>(x);
  p.shift = pointer<const T>(shift);
  p.scale = pointer<const T>(scale);
  p.frame_ids = pointer<const std::int32_t>(frame_ids);
  p.y = pointer<T>(y);
  p.normed = pointer<T>(normed);
  p.tokens = tokens;
  p.width = width;
  p.rows = rows;
  p.shift_stride = shift_stride;
  p.scale_stride = scale_stride;
  p.norm = static_cast<ardiff::RowNorm>(norm);
  p.eps = eps;
  return p;
}

// Returns the first token whose id is out of range, before anything is written; -1 when all went well.
std::int64_t checked_modulate(const ardiff::ModulateParams& p) {
  const std::int64_t bad = ardiff::bindings::first_bad_id(p.frame_ids, p.tokens, p.rows);
  if (bad < 0) ardiff::cpu::modulate(p);
  return bad;
}

void modulate_backward(std::uintptr_t dy, std::uintptr_t dnormed, std::uintptr_t x, std::uintptr_t scale,
                       std::uintptr_t frame_ids, std::uintptr_t dx, std::uintptr_t dshift,
                       std::uintptr_t dscale, std::int64_t tokens, std::int64_t width, std::int64_t rows,
                       std::int64_t scale_stride, int norm, float eps) {
  ardiff::ModulateBackwardParams p{};
  p.dy = pointer<const float>(dy);
  p.dnormed = pointer<const float>(dnormed);
  p.x = pointer<const float>(x);
  p.scale = pointer<const float>(scale);
  p.frame_ids = pointer<const std::int32_t>(frame_ids);
  p.dx = pointer<float>(dx);
  p.dshift = pointer<float>(dshift);
  p.dscale = pointer<float>(dscale);
  p.tokens = tokens;
  p.width = width;
  p.rows = rows;
  p.scale_stride = scale_stride;
  p.norm = static_cast<ardiff::RowNorm>(norm);
  p.eps = eps;
  ardiff::cpu::modulate_backward(p);
}

}  // namespace

ARDIFF_BINDING(modulate) {
  ardiff::bindings::def(m, "modulate", &modulate_params<float>, &checked_modulate);
  m.def("modulate_backward", &modulate_backward, py::call_guard<py::gil_scoped_release>());
  ARDIFF_DEF_CUDA(m, modulate, modulate_params);
}
