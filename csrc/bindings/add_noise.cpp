// SPDX-License-Identifier: Apache-2.0
#include "ardiff/add_noise.h"

#include "binding.h"
#include "cpu/dispatch.h"

ARDIFF_DISPATCH(void, add_noise, const ardiff::AddNoiseParams& p)

namespace py = pybind11;
using ardiff::bindings::pointer;

namespace {

void add_noise(std::uintptr_t x0, std::uintptr_t signal, std::uintptr_t sigma, std::uintptr_t noise,
               std::uintptr_t keys, std::uintptr_t noisy, std::uintptr_t target, std::int64_t rows,
               std::int64_t elements, int kind) {
  ardiff::AddNoiseParams p{};
  p.x0 = pointer<const float>(x0);
  p.signal = pointer<const float>(signal);
  p.sigma = pointer<const float>(sigma);
  p.noise = pointer<const float>(noise);
  p.keys = pointer<const std::int64_t>(keys);
  p.noisy = pointer<float>(noisy);
  p.target = pointer<float>(target);
  p.rows = rows;
  p.elements = elements;
  p.kind = static_cast<ardiff::NoiseTarget>(kind);
  ardiff::cpu::add_noise(p);
}

}  // namespace

ARDIFF_BINDING(add_noise) { m.def("add_noise", &add_noise, py::call_guard<py::gil_scoped_release>()); }
