// SPDX-License-Identifier: Apache-2.0
// DiT blocks over paged K/V as one call, for ardiff_engine/models/dit/native_block.py. A pass over one frame
// is a few hundred microseconds of arithmetic per block; calling ten ops from Python costs as much again.
#include "dit_block.h"

#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "binding.h"
#include "dit_block_run.h"

namespace py = pybind11;

namespace ardiff::bindings {
namespace {

// A struct whose fields are given by name: `Spec(field=value, ...)`. An unknown name is an AttributeError.
template <class Spec>
py::class_<Spec> by_name(py::module_& m, const char* name) {
  py::class_<Spec> spec(m, name);
  spec.def(py::init([spec](const py::kwargs& fields) {
    py::object made = py::cast(Spec{});
    for (const auto& field : fields) {
      if (!py::hasattr(made, field.first)) {
        throw py::attribute_error(py::cast<std::string>(py::repr(spec)) + " has no field " +
                                  py::cast<std::string>(field.first));
      }
      py::setattr(made, field.first, field.second);
    }
    return made.cast<Spec>();
  }));
  return spec;
}

#define ARDIFF_FIELD(field) def_readwrite(#field, &Spec::field)

void def_linear(py::module_& m) {
  using Spec = LinearSpec;
  by_name<Spec>(m, "LinearSpec")
      .ARDIFF_FIELD(weights)
      .ARDIFF_FIELD(bias)
      .ARDIFF_FIELD(inputs)
      .ARDIFF_FIELD(outputs)
      .ARDIFF_FIELD(panel_stride)
      .ARDIFF_FIELD(input_stride);
}

void def_branch(py::module_& m) {
  using Spec = BranchSpec;
  py::enum_<RowNorm>(m, "RowNorm")
      .value("none", RowNorm::none)
      .value("layer", RowNorm::layer)
      .value("rms", RowNorm::rms);
  by_name<Spec>(m, "BranchSpec")
      .ARDIFF_FIELD(norm)
      .ARDIFF_FIELD(eps)
      .ARDIFF_FIELD(shift)
      .ARDIFF_FIELD(scale)
      .ARDIFF_FIELD(gate)
      .ARDIFF_FIELD(fixed_shift)
      .ARDIFF_FIELD(fixed_scale);
}

void def_heads(py::module_& m) {
  using Spec = HeadsSpec;
  py::enum_<HeadNorm>(m, "HeadNorm")
      .value("none", HeadNorm::none)
      .value("layer", HeadNorm::layer)
      .value("rms", HeadNorm::rms)
      .value("rms_full", HeadNorm::rms_full);
  by_name<Spec>(m, "HeadsSpec")
      .ARDIFF_FIELD(heads)
      .ARDIFF_FIELD(kv_heads)
      .ARDIFF_FIELD(dim)
      .ARDIFF_FIELD(norm)
      .ARDIFF_FIELD(eps)
      .ARDIFF_FIELD(q_weight)
      .ARDIFF_FIELD(q_bias)
      .ARDIFF_FIELD(k_weight)
      .ARDIFF_FIELD(k_bias);
}

void def_attention(py::module_& m) {
  using Spec = AttentionSpec;
  by_name<Spec>(m, "AttentionSpec")
      .ARDIFF_FIELD(branch)
      .ARDIFF_FIELD(heads)
      .ARDIFF_FIELD(projection)
      .ARDIFF_FIELD(out);
}

void def_mlp(py::module_& m) {
  using Spec = MlpSpec;
  py::enum_<LinearEpilogue>(m, "Activation")
      .value("gelu_tanh", LinearEpilogue::gelu)
      .value("gelu_erf", LinearEpilogue::gelu_erf)
      .value("silu", LinearEpilogue::silu);
  by_name<Spec>(m, "MlpSpec")
      .ARDIFF_FIELD(branch)
      .ARDIFF_FIELD(up)
      .ARDIFF_FIELD(down)
      .ARDIFF_FIELD(activation);
}

void def_block(py::module_& m) {
  using Spec = BlockSpec;
  by_name<Spec>(m, "BlockSpec")
      .ARDIFF_FIELD(self_attention)
      .ARDIFF_FIELD(has_cross_attention)
      .ARDIFF_FIELD(cross_attention)
      .ARDIFF_FIELD(mlp)
      .ARDIFF_FIELD(replaces_residual);
}

void def_pages(py::module_& m) {
  using Spec = PagesSpec;
  by_name<Spec>(m, "PagesSpec")
      .ARDIFF_FIELD(k)
      .ARDIFF_FIELD(v)
      .ARDIFF_FIELD(layer_stride)
      .ARDIFF_FIELD(pages)
      .ARDIFF_FIELD(page_rows)
      .ARDIFF_FIELD(page_stride)
      .ARDIFF_FIELD(head_stride)
      .ARDIFF_FIELD(row_stride)
      .ARDIFF_FIELD(frame_ptr)
      .ARDIFF_FIELD(group_ptr)
      .ARDIFF_FIELD(page_ptr)
      .ARDIFF_FIELD(page_ids)
      .ARDIFF_FIELD(valid)
      .ARDIFF_FIELD(seen)
      .ARDIFF_FIELD(bias)
      .ARDIFF_FIELD(groups)
      .ARDIFF_FIELD(first_head)
      .ARDIFF_FIELD(heads);
}

void def_pass(py::module_& m) {
  using Spec = PassSpec;
  by_name<Spec>(m, "PassSpec")
      .ARDIFF_FIELD(h)
      .ARDIFF_FIELD(modulation)
      .ARDIFF_FIELD(frame_ids)
      .ARDIFF_FIELD(slots)
      .ARDIFF_FIELD(positions)
      .ARDIFF_FIELD(frequencies)
      .ARDIFF_FIELD(wanted)
      .ARDIFF_FIELD(tokens)
      .ARDIFF_FIELD(width)
      .ARDIFF_FIELD(rows)
      .ARDIFF_FIELD(values)
      .ARDIFF_FIELD(modulation_stride)
      .ARDIFF_FIELD(axes)
      .ARDIFF_FIELD(pages)
      .ARDIFF_FIELD(further)
      .ARDIFF_FIELD(condition)
      .ARDIFF_FIELD(workspace)
      .ARDIFF_FIELD(workspace_floats);
}

#undef ARDIFF_FIELD

}  // namespace
}  // namespace ardiff::bindings

ARDIFF_BINDING(dit_block) {
  using namespace ardiff::bindings;
  def_linear(m);
  def_branch(m);
  def_heads(m);
  def_attention(m);
  def_mlp(m);
  def_block(m);
  def_pages(m);
  def_pass(m);
  m.def("dit_blocks", &dit::dit_blocks, py::arg("blocks"), py::arg("batch"));
  m.def("dit_block_floats", &dit::dit_block_floats, py::arg("blocks"), py::arg("tokens"), py::arg("width"));
}
