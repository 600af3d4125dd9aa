# SPDX-License-Identifier: Apache-2.0
"""A linear layer with packed weights, whose rows do not depend on their neighbours, to the bit:

y = x Wᵀ + b, then optionally GELU (tanh form)

BLAS picks its kernels by the shape of a product, and they round differently; a stream's video would then
depend on who else is being served. Here the order of every output's additions depends on the number of inputs
alone. On a GPU, and where gradients are wanted, linear layers stay PyTorch's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ardiff_engine.arguments import instance
from ardiff_engine.errors import TensorError, explain
from ardiff_engine.ops import checks
from ardiff_engine.ops.backend import choose
from ardiff_engine.ops.dispatch import traced, watched, without_autocast
from ardiff_engine.ops.native_kernels import kernels

PANEL_OUTPUTS = 48
_NONE, _GELU = 0, 1


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A weight [outputs, inputs] in the order in which the CPU kernel reads it: `pack_linear` makes it.

    panels: float32 [ceil(outputs / 48), inputs, 48]; panels[p, i, c] = weight[48 p + c, i], or 0.
    """

    panels: torch.Tensor
    inputs: int
    outputs: int

    def unpack(self) -> torch.Tensor:
        """The weight [outputs, inputs], a copy."""
        return self.panels.transpose(1, 2).reshape(-1, self.inputs)[: self.outputs].contiguous()


def pack_linear(weight: torch.Tensor) -> PackedWeight:
    """A packed copy of a weight. Later changes of the weight are not seen.

    Args:
        weight: float32 [outputs, inputs] on the CPU.

    Raises:
        TensorError: a wrong shape, dtype or device, or no inputs.
    """
    weight = checks.tensor("weight", weight).detach()
    checks.shape("weight", weight, ("outputs", "inputs"))
    checks.dtype("weight", weight, torch.float32)
    checks.device("weight", weight, torch.device("cpu"))
    outputs, inputs = weight.shape
    if inputs == 0:
        raise TensorError(explain("weight", got="0 inputs", expected="1 or more", fix="Check its shape."))
    count = -(-outputs // PANEL_OUTPUTS)
    if traced(weight) or choose("linear", weight).name == "reference":
        padded = torch.nn.functional.pad(weight, (0, 0, 0, count * PANEL_OUTPUTS - outputs))
        panels = padded.view(count, PANEL_OUTPUTS, inputs).transpose(1, 2).contiguous()
    else:
        if weight.stride(1) != 1:
            weight = weight.contiguous()
        panels = weight.new_empty(count, inputs, PANEL_OUTPUTS)
        kernels().pack_linear(weight.data_ptr(), panels.data_ptr(), outputs, inputs, weight.stride(0))
    return PackedWeight(panels, inputs, outputs)


def linear(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None, *, gelu: bool = False
) -> torch.Tensor:
    """x Wᵀ + bias, float32 [..., outputs] on the CPU. No gradient is recorded.

    A row of the result is the same, bit for bit, for any number of rows and threads.

    Args:
        x: float32 [..., inputs] on the CPU.
        weight: W, from `pack_linear`.
        bias: float32 [outputs]; None: zero.
        gelu: return the GELU of the result, tanh form.

    Raises:
        TensorError: a wrong shape, dtype or device, or a gradient that would be recorded.
    """
    x, bias = checks.tensor("x", x), checks.optional("bias", bias)
    _check(x, instance("weight", weight, PackedWeight), bias)
    rows = x.reshape(-1, weight.inputs).contiguous()
    shape = (*x.shape[:-1], weight.outputs)
    if torch.compiler.is_compiling() or choose("linear", x, weight.panels, bias).name == "reference":
        return reference_linear(rows, weight, bias, gelu).reshape(shape)
    run = torch.ops.ardiff.linear if watched(rows, weight.panels, bias) else _run
    y: torch.Tensor = run(rows, weight.panels, bias, weight.inputs, weight.outputs, gelu)
    return y.view(shape)


@without_autocast
def reference_linear(
    rows: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, gelu: bool
) -> torch.Tensor:
    """The specification in PyTorch; its rows do depend on their neighbours."""
    y = torch.nn.functional.linear(rows, weight.unpack(), bias)
    return torch.nn.functional.gelu(y, approximate="tanh") if gelu else y


def _run(
    rows: torch.Tensor, panels: torch.Tensor, bias: torch.Tensor | None, inputs: int, outputs: int, gelu: bool
) -> torch.Tensor:
    y = rows.new_empty(rows.shape[0], outputs)
    if y.numel():
        bias = None if bias is None else bias.contiguous()
        kernels().linear(
            rows.data_ptr(),
            panels.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            rows.shape[0],
            inputs,
            outputs,
            _GELU if gelu else _NONE,
        )
    return y


_op = torch.library.custom_op("ardiff::linear", _run, mutates_args=())


@_op.register_fake
def _(
    rows: torch.Tensor, panels: torch.Tensor, bias: torch.Tensor | None, inputs: int, outputs: int, gelu: bool
) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], outputs)


def _check(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> None:
    given = {"x": x} if bias is None else {"x": x, "bias": bias}
    for name, tensor in given.items():
        checks.dtype(name, tensor, torch.float32)
        checks.device(name, tensor, torch.device("cpu"))
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise TensorError(
                explain(
                    f"gradient of {name}",
                    got="requires_grad=True",
                    expected="no gradient to record: packed weights are for inference",
                    fix="Use torch.nn.functional.linear, or call it under torch.no_grad().",
                )
            )
    if x.dim() == 0 or x.shape[-1] != weight.inputs:
        raise TensorError(
            explain(
                "shape of x",
                got=list(x.shape),
                expected=f"[..., {weight.inputs}], the weight's inputs",
                fix="Check which layer the weight belongs to.",
            )
        )
    if bias is not None:
        checks.shape("bias", bias, (weight.outputs,))
