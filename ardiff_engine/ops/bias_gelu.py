# SPDX-License-Identifier: Apache-2.0
"""The bias of a linear layer and the GELU after it (tanh form), differentiable:

y = gelu(x + bias)

What training puts between the two products of an MLP: with the bias here the first product need not start
from a copy of it, and the bias' gradient comes from the pass that computes dx.
"""

from __future__ import annotations

from typing import Any

import torch

from ardiff_engine.ops import checks
from ardiff_engine.ops.backend import choose, triton_kernel
from ardiff_engine.ops.cuda_launch import address
from ardiff_engine.ops.dispatch import needs_grad, watched, without_autocast
from ardiff_engine.ops.native_kernels import kernels

Tensor = torch.Tensor


def bias_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """gelu(x + bias) [T, D]. Differentiable in both, the kernels (float32 on the CPU, and GPUs) once.

    Traced by torch.compile, and elsewhere, it is the formula in PyTorch.

    Args:
        x: [T, D], floating point.
        bias: [D], of the dtype of x; None: zero.

    Raises:
        TensorError: a wrong shape, dtype or device.
    """
    x, bias = checks.tensor("x", x), checks.optional("bias", bias)
    checks.shape("x", x, ("T", "D"))
    checks.floating("x", x)
    if bias is not None:
        checks.shape("bias", bias, (x.shape[1],))
        checks.same("bias", bias, "x", x)
    if torch.compiler.is_compiling() or choose("bias_gelu", x, bias).name == "reference":
        return reference_bias_gelu(x, bias)
    dispatched = watched(x, bias) or needs_grad(x, bias)
    y: Tensor = torch.ops.ardiff.bias_gelu(x, bias) if dispatched else _run(x, bias)
    return y


@without_autocast
def reference_bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """The specification in PyTorch."""
    return torch.nn.functional.gelu(x if bias is None else x + bias, approximate="tanh")


def _run(x: Tensor, bias: Tensor | None) -> Tensor:
    backend = choose("bias_gelu", x, bias).name
    if backend == "reference":
        return reference_bias_gelu(x, bias)
    if backend == "triton":
        made: Tensor = triton_kernel("bias_gelu")(x, bias)
        return made
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    y = torch.empty_like(x)
    kernels().bias_gelu(address(x), address(bias), address(y), *x.shape)
    return y


def _run_backward(dy: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(dx, dbias); dbias is empty without a bias."""
    backend = choose("bias_gelu_backward", dy, x, bias).name
    if backend == "reference":
        dx = torch.ops.aten.gelu_backward(dy, x if bias is None else x + bias, approximate="tanh")
        return dx, x.new_empty(0) if bias is None else dx.sum(0)
    if backend == "triton":
        dx, dbias = triton_kernel("bias_gelu_backward")(dy, x, bias)
        return dx, dbias
    dy, x, bias = dy.contiguous(), x.contiguous(), None if bias is None else bias.contiguous()
    dx, dbias = torch.empty_like(x), x.new_empty(0 if bias is None else x.shape[1])
    kernels().bias_gelu_backward(
        address(dy), address(x), address(bias), address(dx), 0 if bias is None else address(dbias), *x.shape
    )
    return dx, dbias


_op = torch.library.custom_op("ardiff::bias_gelu", _run, mutates_args=())
_backward_op = torch.library.custom_op("ardiff::bias_gelu_backward", _run_backward, mutates_args=())


@_op.register_fake
def _(x: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@_backward_op.register_fake
def _(dy: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0 if bias is None else x.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None]:
    x, bias = ctx.saved_tensors
    dx, dbias = _backward_op(dy, x, bias)
    return dx, None if bias is None else dbias


_op.register_autograd(_differentiate, setup_context=_save)
