# SPDX-License-Identifier: Apache-2.0
"""A gated residual with a gate row per frame (the end of a DiT sub-layer):

out = residual + gate[id] * (branch + bias), with id = frame_ids[token]

Half precision is computed in float32.
"""

from __future__ import annotations

from typing import Any

import torch

from ardiff_engine.errors import TensorError, explain
from ardiff_engine.ops.backend import choose, triton_kernel
from ardiff_engine.ops.checks import device, optional, tensor, writable
from ardiff_engine.ops.cuda_launch import address, error_bits, launch_for
from ardiff_engine.ops.dispatch import needs_grad, watched, without_autocast
from ardiff_engine.ops.frame_rows import (
    check_frame_rows,
    check_range,
    dense_rows,
    range_error,
    sum_rows,
    widen,
    widest,
)
from ardiff_engine.ops.native_kernels import kernels


def gate_residual(
    residual: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    frame_ids: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """residual [T, D] + gate[id] * (branch [T, D] + bias [D]), in the dtype of `residual`.

    Differentiable once in residual, branch, gate and bias.

    Args:
        residual, branch: [T, D], floating point.
        gate: [M, D], floating point; rows may be strided views.
        frame_ids: int32 or int64 [T], the row of each token, in 0..M-1.
        bias: [D], floating point; None: zero.

    Raises:
        TensorError: a wrong shape, dtype or device, or an id out of range (read on the CPU only).
    """
    residual = tensor("residual", residual)
    branch, gate, frame_ids, bias = _check(residual, branch, gate, frame_ids, bias)
    if watched(residual, branch, gate, frame_ids, bias) or needs_grad(residual, branch, gate, bias):
        return torch.ops.ardiff.gate_residual(residual, branch, gate, frame_ids, bias)
    return _run(residual, branch, gate, frame_ids, bias)


def gate_residual_(
    residual: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    frame_ids: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`gate_residual` in place: overwrites the contiguous `residual` and returns it.

    Args:
        residual: [T, D], contiguous; written. An array with __dlpack__ is overwritten too, and returned as
            the tensor that shares its memory.
        branch, gate, frame_ids, bias: as in `gate_residual`.

    Raises:
        TensorError: as `gate_residual`; where a gradient would be recorded; memory that cannot be written.
    """
    residual = writable("residual", residual)
    branch, gate, frame_ids, bias = _check(residual, branch, gate, frame_ids, bias)
    if not residual.is_contiguous() or needs_grad(residual, branch, gate, bias):
        raise TensorError(
            explain(
                "gate_residual_ works in place",
                got=f"strides {residual.stride()}, grad mode {torch.is_grad_enabled()}",
                expected="a contiguous residual and no gradient to record",
                fix="Use gate_residual, or call it under torch.no_grad().",
            )
        )
    if watched(residual, branch, gate, frame_ids, bias):
        torch.ops.ardiff.gate_residual_(residual, branch, gate, frame_ids, bias)
    else:
        _run_in_place(residual, branch, gate, frame_ids, bias)
    return residual


@without_autocast
def reference_gate_residual(
    residual: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    frame_ids: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """The specification in PyTorch."""
    full = widen(branch)
    if bias is not None:
        full = full + widen(bias)
    return (widen(residual) + widen(gate)[frame_ids] * full).to(residual.dtype)


@without_autocast
def reference_gate_residual_backward(
    dy: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    frame_ids: torch.Tensor,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dbranch, dgate, dbias); dbias is empty without a bias. The gradient of the residual is dy itself."""
    wide = torch.promote_types(dy.dtype, torch.float32)
    dy, full = dy.to(wide), branch.to(wide)
    if bias is not None:
        full = full + bias
    dbranch = dy * gate[frame_ids]
    dgate = sum_rows(dy * full, frame_ids, gate.shape[0])
    dbias = gate.new_empty(0) if bias is None else dbranch.sum(0).to(bias.dtype)
    return dbranch.to(branch.dtype), dgate.to(gate.dtype), dbias


def _check(
    residual: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    frame_ids: torch.Tensor,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The arguments after `residual` as tensors that fit it."""
    branch, gate = tensor("branch", branch), tensor("gate", gate)
    frame_ids, bias = tensor("frame_ids", frame_ids), optional("bias", bias)
    frame_ids = check_frame_rows(residual, frame_ids, {"gate": gate})
    if branch.shape != residual.shape or not branch.is_floating_point():
        raise TensorError(
            explain(
                "branch",
                got=f"{branch.dtype} {list(branch.shape)}",
                expected=f"floating point {list(residual.shape)}, as residual",
                fix="Pass the sub-layer's output, one row per token.",
            )
        )
    device("branch", branch, residual.device)
    if bias is not None:
        device("bias", bias, residual.device)
        if bias.dim() != 1 or bias.shape[0] != residual.shape[1] or not bias.is_floating_point():
            raise TensorError(
                explain(
                    "bias",
                    got=f"{bias.dtype} {list(bias.shape)}",
                    expected=f"floating point [{residual.shape[1]}]",
                    fix="Pass one value per column, or None.",
                )
            )
    return branch, gate, frame_ids, bias


def _run(
    residual: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    frame_ids: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    backend = choose("gate_residual", residual, branch, gate, bias).name
    if backend == "reference":
        check_range(frame_ids, gate.shape[0])
        return reference_gate_residual(residual, branch, gate, frame_ids, bias)
    if backend == "triton":
        sum_: torch.Tensor = triton_kernel("gate_residual")(residual, branch, gate, frame_ids, bias)
        return sum_
    if backend == "cuda":
        return _run_cuda(residual, branch, gate, frame_ids, bias)
    residual = residual.contiguous()
    out = torch.empty_like(residual)
    _launch(residual, branch, gate, frame_ids, bias, out)
    return out


def _run_in_place(
    residual: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    frame_ids: torch.Tensor,
    bias: torch.Tensor | None,
) -> None:
    backend = choose("gate_residual", residual, branch, gate, bias).name
    if backend == "reference":
        check_range(frame_ids, gate.shape[0])
        residual.copy_(reference_gate_residual(residual, branch, gate, frame_ids, bias))
    elif backend == "triton":
        triton_kernel("gate_residual_")(residual, branch, gate, frame_ids, bias)
    elif backend == "cuda":
        written = _run_cuda(residual, branch, gate, frame_ids, bias, residual)
        if written is not residual:
            residual.copy_(written)
    else:
        _launch(residual, branch, gate, frame_ids, bias, residual)


def _run_cuda(
    residual: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    frame_ids: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sum, in `out` where that has the dtype that the kernel runs in."""
    dtype = widest(residual, branch, gate, bias)
    wide, branch = residual.to(dtype).contiguous(), branch.to(dtype).contiguous()
    gate, bias = dense_rows(gate.to(dtype)), None if bias is None else bias.to(dtype).contiguous()
    frame_ids = frame_ids.contiguous()
    target = out if out is not None and out.dtype == wide.dtype else torch.empty_like(wide)
    launch_for(
        "gate_residual",
        wide,
        wide.data_ptr(),
        branch.data_ptr(),
        gate.data_ptr(),
        frame_ids.data_ptr(),
        address(bias),
        target.data_ptr(),
        wide.shape[0],
        wide.shape[1],
        gate.shape[0],
        gate.stride(0),
        error_bits(residual.device).data_ptr(),
    )
    return target.to(residual.dtype)


def _launch(
    residual: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    frame_ids: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    branch, gate, frame_ids = branch.contiguous(), dense_rows(gate), frame_ids.contiguous()
    bias = None if bias is None else bias.contiguous()
    bad = kernels().gate_residual(
        residual.data_ptr(),
        branch.data_ptr(),
        gate.data_ptr(),
        frame_ids.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        residual.shape[0],
        residual.shape[1],
        gate.shape[0],
        gate.stride(0),
    )
    if bad >= 0:
        raise range_error(int(frame_ids[bad]), gate.shape[0])


@torch.library.custom_op("ardiff::gate_residual", mutates_args=())
def _gate_residual_op(
    residual: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    frame_ids: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    return _run(residual, branch, gate, frame_ids, bias)


@_gate_residual_op.register_fake
def _gate_residual_fake(
    residual: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    frame_ids: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    return residual.new_empty(residual.shape)


@torch.library.custom_op("ardiff::gate_residual_", mutates_args=("residual",))
def _gate_residual_in_place_op(
    residual: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    frame_ids: torch.Tensor,
    bias: torch.Tensor | None,
) -> None:
    _run_in_place(residual, branch, gate, frame_ids, bias)


@torch.library.custom_op("ardiff::gate_residual_backward", mutates_args=())
def _backward_op(
    dy: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    frame_ids: torch.Tensor,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    backend = choose("gate_residual_backward", dy, branch, gate, bias).name
    if backend == "triton":
        dbranch, dgate, dbias = triton_kernel("gate_residual_backward")(dy, branch, gate, frame_ids, bias)
        return dbranch, dgate, dbias
    if backend == "reference":
        return reference_gate_residual_backward(dy, branch, gate, frame_ids, bias)
    dy, branch, gate, frame_ids = (
        dy.contiguous(),
        branch.contiguous(),
        dense_rows(gate),
        frame_ids.contiguous(),
    )
    bias = None if bias is None else bias.contiguous()
    dbranch, dgate = torch.empty_like(branch), gate.new_empty(gate.shape)
    dbias = gate.new_empty(0 if bias is None else bias.shape[0])
    kernels().gate_residual_backward(
        dy.data_ptr(),
        branch.data_ptr(),
        gate.data_ptr(),
        frame_ids.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        dbranch.data_ptr(),
        dgate.data_ptr(),
        0 if bias is None else dbias.data_ptr(),
        dy.shape[0],
        dy.shape[1],
        gate.shape[0],
        gate.stride(0),
    )
    return dbranch, dgate, dbias


@_backward_op.register_fake
def _backward_fake(
    dy: torch.Tensor,
    branch: torch.Tensor,
    gate: torch.Tensor,
    frame_ids: torch.Tensor,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dbias = gate.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return branch.new_empty(branch.shape), gate.new_empty(gate.shape), dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, branch, gate, frame_ids, bias = inputs
    ctx.save_for_backward(branch, gate, frame_ids, bias)


def _backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    branch, gate, frame_ids, bias = ctx.saved_tensors
    dbranch, dgate, dbias = _backward_op(dy, branch, gate, frame_ids, bias)
    return dy, dbranch, dgate, None, None if bias is None else dbias


_gate_residual_op.register_autograd(_backward, setup_context=_setup_context)
