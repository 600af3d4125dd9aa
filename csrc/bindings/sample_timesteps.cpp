// SPDX-License-Identifier: Apache-2.0
#include "ardiff/sample_timesteps.h"

#include "binding.h"
#include "cpu/dispatch.h"

ARDIFF_DISPATCH(void, sample_timesteps, const ardiff::SampleTimestepsParams& p)

namespace py = pybind11;
using ardiff::bindings::pointer;

namespace {

void sample_timesteps(std::uintptr_t out, std::int64_t batch, std::int64_t frames, std::int64_t timesteps,
                      int rule, std::int64_t seed, std::int64_t first_sample) {
  ardiff::cpu::sample_timesteps({pointer<std::int64_t>(out), batch, frames, timesteps, seed, first_sample,
                                 static_cast<ardiff::TimestepRule>(rule)});
}

}  // namespace

ARDIFF_BINDING(sample_timesteps) {
  m.def("sample_timesteps", &sample_timesteps, py::call_guard<py::gil_scoped_release>());
}
