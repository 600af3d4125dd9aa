// SPDX-License-Identifier: Apache-2.0
#include "ardiff/pages.h"

#include "binding.h"
#include "cpu/dispatch.h"

ARDIFF_DISPATCH(void, copy_pages, const ardiff::CopyPagesParams& p)
ARDIFF_DISPATCH(void, rotate_pages, const ardiff::RotatePagesParams& p)

namespace py = pybind11;
using ardiff::bindings::pointer;

namespace {

void copy_pages(std::uintptr_t k_pages, std::uintptr_t v_pages, std::uintptr_t src, std::uintptr_t dst,
                std::int64_t count, std::int64_t layers, std::int64_t page_elements,
                std::int64_t layer_stride, std::int64_t page_stride) {
  ardiff::cpu::copy_pages({pointer<float>(k_pages), pointer<float>(v_pages), pointer<const std::int64_t>(src),
                           pointer<const std::int64_t>(dst), count, layers, page_elements, layer_stride,
                           page_stride});
}

void rotate_pages(std::uintptr_t k_pages, std::uintptr_t source, std::uintptr_t pages, std::uintptr_t deltas,
                  std::uintptr_t frequencies, std::uintptr_t angles, std::int64_t count, std::int64_t layers,
                  std::int64_t rows, std::int64_t dim, std::int64_t layer_stride, std::int64_t page_stride,
                  std::int64_t source_layer_stride, std::int64_t source_page_stride) {
  ardiff::RotatePagesParams p{};
  p.k_pages = pointer<float>(k_pages);
  p.source = pointer<const float>(source);
  p.pages = pointer<const std::int64_t>(pages);
  p.deltas = pointer<const std::int64_t>(deltas);
  p.frequencies = pointer<const double>(frequencies);
  p.angles = pointer<float>(angles);
  p.count = count;
  p.layers = layers;
  p.rows = rows;
  p.dim = dim;
  p.layer_stride = layer_stride;
  p.page_stride = page_stride;
  p.source_layer_stride = source_layer_stride;
  p.source_page_stride = source_page_stride;
  ardiff::cpu::rotate_pages(p);
}

}  // namespace

ARDIFF_BINDING(pages) {
  m.def("copy_pages", &copy_pages, py::call_guard<py::gil_scoped_release>());
  m.def("rotate_pages", &rotate_pages, py::call_guard<py::gil_scoped_release>());
}
