// SPDX-License-Identifier: Apache-2.0
// How an op enters the Python module. Each file of csrc/bindings writes
//
//   template <class T>
//   ardiff::ScaleParamsOf<T> scale_params(std::uintptr_t x, std::int64_t elements) {
//     return {pointer<T>(x), elements};
//   }
//
//   ARDIFF_BINDING(scale) { def(m, "scale", &scale_params<float>, &ardiff::cpu::scale); }
//
// and is picked up by the build; no list of ops exists elsewhere. All of them are compiled as one file, so
// names must differ, and a kernel that two of them call is declared in shared_kernels.h. Tensors arrive as
// integers
// (`tensor.data_ptr()`, 0 for none) and become pointers through `pointer<float>(address)`. cuda.h does the
// same for the launchers of csrc/cuda.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace ardiff::bindings {

namespace py = pybind11;

class Registration {
 public:
  using Function = void (*)(py::module_&);
  explicit Registration(Function function) : function_(function), next_(first()) { first() = this; }
  static void run_all(py::module_& m) {
    for (Registration* r = first(); r; r = r->next_) r->function_(m);
  }

 private:
  static Registration*& first() {
    static Registration* head = nullptr;
    return head;
  }
  Function function_;
  Registration* next_;
};

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// m.name(...) = run(make(...)), without the interpreter lock.
template <class Params, class... Arguments, class Run>
void def(py::module_& m, const char* name, Params (*make)(Arguments...), Run run) {
  m.def(
      name, [make, run](Arguments... arguments) { return run(make(arguments...)); },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace ardiff::bindings

#define ARDIFF_BINDING(name)                                                                         \
  static void ardiff_register_##name(pybind11::module_& m);                                          \
  static const ::ardiff::bindings::Registration ardiff_registration_##name(&ardiff_register_##name); \
  static void ardiff_register_##name([[maybe_unused]] pybind11::module_& m)
