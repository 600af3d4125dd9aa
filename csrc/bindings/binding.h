// SPDX-License-Identifier: Apache-2.0
// How an op enters the Python module. Each file of csrc/bindings writes
//
//   ARDIFF_BINDING(scale) { m.def("scale", &scale, py::call_guard<py::gil_scoped_release>()); }
//
// and is picked up by the build; no list of ops exists elsewhere. Tensors arrive as integers
// (`tensor.data_ptr()`, 0 for none) and become pointers through `pointer<float>(address)`.
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

}  // namespace ardiff::bindings

#define ARDIFF_BINDING(name)                                                                         \
  static void ardiff_register_##name(pybind11::module_& m);                                          \
  static const ::ardiff::bindings::Registration ardiff_registration_##name(&ardiff_register_##name); \
  static void ardiff_register_##name([[maybe_unused]] pybind11::module_& m)
