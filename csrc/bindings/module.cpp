// SPDX-License-Identifier: Apache-2.0
// The module ardiff_engine._C: what it was built with, the instruction set in use, and every registered op.
#include <cstdlib>
#include <string>

#include "binding.h"
#include "cpu/cache_size.h"
#include "cpu/dispatch.h"
#include "cpu/threads.h"

namespace py = pybind11;
using ardiff::cpu::Isa;

namespace {

constexpr Isa kIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512};

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __VERSION__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

#if defined(ARDIFF_WITH_CUDA)
constexpr bool kCuda = true;
#else
constexpr bool kCuda = false;
#endif

#if defined(_OPENMP)
constexpr bool kOpenMP = true;
#else
constexpr bool kOpenMP = false;
#endif

py::list supported_isas() {
  py::list names;
  for (Isa isa : kIsas) {
    if (ardiff::cpu::isa_supported(isa)) names.append(ardiff::cpu::isa_name(isa));
  }
  return names;
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = kCompiler;
  info["isas"] = supported_isas();
  info["cuda"] = kCuda;
  info["openmp"] = kOpenMP;
  return info;
}

void set_isa(const std::string& name) {
  for (Isa isa : kIsas) {
    if (name == ardiff::cpu::isa_name(isa) && ardiff::cpu::set_isa(isa)) return;
  }
  throw py::value_error("Unknown instruction set: got '" + name + "', expected one of " +
                        std::string(py::str(supported_isas())) +
                        ". Set ARDIFF_ISA to one of these, or unset it.");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "Native kernels of ardiff_engine. Tensors are passed as addresses; use ardiff_engine.ops instead.";
  m.def("build_info", &build_info, "compiler, instruction sets usable on this machine, cuda, openmp");
  m.def("isa", [] { return ardiff::cpu::isa_name(ardiff::cpu::active_isa()); }, "the instruction set in use");
  m.def("set_isa", &set_isa, "use another instruction set; for tests and benchmarks");
  m.def("set_cache_size", &ardiff::cpu::set_cache_size,
        "pretend another cache size: larger results are streamed to memory; -1 restores it; for tests");
  m.def("max_threads", &ardiff::cpu::max_threads, "threads that a kernel may use: torch.get_num_threads()");
  if (const char* wanted = std::getenv("ARDIFF_ISA")) set_isa(wanted);
  ardiff::bindings::Registration::run_all(m);
}
