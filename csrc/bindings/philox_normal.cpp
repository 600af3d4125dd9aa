// SPDX-License-Identifier: Apache-2.0
#include "ardiff/philox_normal.h"

#include "binding.h"
#include "cpu/dispatch.h"

ARDIFF_DISPATCH(void, philox_normal, const ardiff::PhiloxNormalParams& p)

namespace py = pybind11;
using ardiff::bindings::pointer;

namespace {

void philox_normal(std::uintptr_t keys, std::uintptr_t out, std::int64_t rows, std::int64_t elements) {
  ardiff::cpu::philox_normal({pointer<const std::int64_t>(keys), pointer<float>(out), rows, elements});
}

}  // namespace

ARDIFF_BINDING(philox_normal) {
  m.def("philox_normal", &philox_normal, py::call_guard<py::gil_scoped_release>());
}
