# SPDX-License-Identifier: Apache-2.0
"""Normalisation with a shift and scale per frame: adaptive layer norm (DiT, Peebles and Xie 2023) with one
modulation row per frame instead of per image.

    n = norm(x)     "layer": (x - mean) / sqrt(var + eps);  "rms": x / sqrt(mean(x^2) + eps);  "none": x
    y = n * (1 + scale[id]) + shift[id]     id = frame_ids[token]

Half precision is computed in float32.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch

from ardiff_engine.arguments import choice, number
from ardiff_engine.errors import TensorError, explain
from ardiff_engine.ops.backend import choose, triton_kernel
from ardiff_engine.ops.checks import tensor
from ardiff_engine.ops.cuda_launch import error_bits, launch_for
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

NORMS = ("none", "layer", "rms")
# csrc/cuda/modulate.cu keeps a row in registers.
_CUDA_ROW_BYTES = 32768


@overload
def modulate(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    frame_ids: torch.Tensor,
    *,
    norm: str = "layer",
    eps: float = 1e-6,
    return_normed: Literal[False] = False,
) -> torch.Tensor: ...
@overload
def modulate(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    frame_ids: torch.Tensor,
    *,
    norm: str = "layer",
    eps: float = 1e-6,
    return_normed: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...
def modulate(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    frame_ids: torch.Tensor,
    *,
    norm: str = "layer",
    eps: float = 1e-6,
    return_normed: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """y [T, D] = norm(x) * (1 + scale[id]) + shift[id]; with `return_normed`, (y, norm(x)).

    Results have the dtype of x. Differentiable once in x, shift and scale, through both results.

    Args:
        x: [T, D], floating point.
        shift, scale: [M, D], floating point; rows may be strided views.
        frame_ids: int32 or int64 [T], the row of each token, in 0..M-1.
        norm: "none", "layer" or "rms".
        eps: added to the variance or mean square.
        return_normed: also return norm(x), which replaces the residual in AR-Diffusion's `share_norm` blocks.

    Raises:
        ConfigError: an unknown norm.
        TensorError: a wrong shape, dtype or device, or an id out of range (read on the CPU only).
    """
    choice("norm", norm, NORMS)
    eps = number("eps", eps)
    x, shift, scale = tensor("x", x), tensor("shift", shift), tensor("scale", scale)
    frame_ids = tensor("frame_ids", frame_ids)
    frame_ids = check_frame_rows(x, frame_ids, {"shift": shift, "scale": scale})
    dispatched = watched(x, shift, scale, frame_ids) or needs_grad(x, shift, scale)
    run = torch.ops.ardiff.modulate if dispatched else _run
    y, normed = run(x, shift, scale, frame_ids, norm, eps, return_normed)
    return (y, normed) if return_normed else y


@without_autocast
def reference_modulate(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, frame_ids: torch.Tensor, norm: str, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The specification in PyTorch: (y, norm(x))."""
    normed, _ = _normalise(x, norm, eps)
    y = normed * (1 + widen(scale)[frame_ids]) + widen(shift)[frame_ids]
    return y.to(x.dtype), normed.to(x.dtype)


@without_autocast
def reference_modulate_backward(
    dy: torch.Tensor,
    dnormed: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    frame_ids: torch.Tensor,
    norm: str,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dshift, dscale); `dnormed` has no rows where norm(x) was not returned.

    With dn the gradient of n and r the reciprocal of the root: layer dx = r (dn - mean(dn) - n mean(dn n)),
    rms dx = r (dn - n mean(dn n)).
    """
    normed, reciprocal = _normalise(x, norm, eps)
    dy = dy.to(normed.dtype)
    dn = dy * (1 + widen(scale)[frame_ids])
    if dnormed.shape[0] == dy.shape[0]:
        dn = dn + dnormed
    rows = scale.shape[0]
    dshift, dscale = sum_rows(dy, frame_ids, rows), sum_rows(dy * normed, frame_ids, rows)
    if norm == "none":
        dx = dn
    else:
        dx = dn - normed * (dn * normed).mean(-1, keepdim=True)
        dx = reciprocal * (dx - dn.mean(-1, keepdim=True) if norm == "layer" else dx)
    return dx.to(x.dtype), dshift.to(scale.dtype), dscale.to(scale.dtype)


def _normalise(x: torch.Tensor, norm: str, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """norm(x) in at least float32, and the reciprocal root [T, 1]."""
    x = widen(x)
    if norm == "none":
        return x, x.new_ones(())
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    reciprocal = torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    return x * reciprocal, reciprocal


def _run(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    frame_ids: torch.Tensor,
    norm: str,
    eps: float,
    return_normed: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = scale.shape[0]
    backend = choose("modulate", x, shift, scale).name
    if backend == "cuda":
        return _run_cuda(x, shift, scale, frame_ids, norm, eps, return_normed)
    if backend == "triton":
        y, normed = triton_kernel("modulate")(x, shift, scale, frame_ids, norm, eps, return_normed)
        return y, normed
    if backend == "reference":
        check_range(frame_ids, rows)
        y, normed = reference_modulate(x, shift, scale, frame_ids, norm, eps)
        return y, normed if return_normed and normed is not x else _second(x, return_normed)
    x, shift, scale, frame_ids = x.contiguous(), dense_rows(shift), dense_rows(scale), frame_ids.contiguous()
    y, normed = torch.empty_like(x), x.new_empty(x.shape if return_normed else (0, x.shape[1]))
    bad = kernels().modulate(
        x.data_ptr(),
        shift.data_ptr(),
        scale.data_ptr(),
        frame_ids.data_ptr(),
        y.data_ptr(),
        normed.data_ptr() if return_normed else 0,
        x.shape[0],
        x.shape[1],
        rows,
        shift.stride(0),
        scale.stride(0),
        NORMS.index(norm),
        eps,
    )
    if bad >= 0:
        raise range_error(int(frame_ids[bad]), rows)
    return y, normed


def _run_cuda(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    frame_ids: torch.Tensor,
    norm: str,
    eps: float,
    return_normed: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = widest(x, shift, scale)
    wide, shift, scale = x.to(dtype), shift.to(dtype), scale.to(dtype)
    if wide.shape[1] * wide.element_size() > _CUDA_ROW_BYTES:
        raise TensorError(
            explain(
                "width of x",
                got=wide.shape[1],
                expected=f"at most {_CUDA_ROW_BYTES // wide.element_size()} on the cuda backend",
                fix="Set ARDIFF_BACKEND=reference for such rows.",
            )
        )
    wide, shift, scale = wide.contiguous(), dense_rows(shift), dense_rows(scale)
    frame_ids = frame_ids.contiguous()
    y, normed = torch.empty_like(wide), wide.new_empty(wide.shape if return_normed else (0, wide.shape[1]))
    launch_for(
        "modulate",
        wide,
        wide.data_ptr(),
        shift.data_ptr(),
        scale.data_ptr(),
        frame_ids.data_ptr(),
        y.data_ptr(),
        normed.data_ptr() if return_normed else 0,
        wide.shape[0],
        wide.shape[1],
        scale.shape[0],
        shift.stride(0),
        scale.stride(0),
        NORMS.index(norm),
        eps,
        error_bits(x.device).data_ptr(),
    )
    return y.to(x.dtype), normed.to(x.dtype)


def _second(x: torch.Tensor, return_normed: bool) -> torch.Tensor:
    return x.clone() if return_normed else x.new_empty(0, x.shape[1])


@torch.library.custom_op("ardiff::modulate", mutates_args=())
def _modulate_op(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    frame_ids: torch.Tensor,
    norm: str,
    eps: float,
    return_normed: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _run(x, shift, scale, frame_ids, norm, eps, return_normed)


@_modulate_op.register_fake
def _modulate_fake(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    frame_ids: torch.Tensor,
    norm: str,
    eps: float,
    return_normed: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    y = x.new_empty(x.shape)
    return y, x.new_empty(x.shape if return_normed else (0, x.shape[1]))


@torch.library.custom_op("ardiff::modulate_backward", mutates_args=())
def _backward_op(
    dy: torch.Tensor,
    dnormed: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    frame_ids: torch.Tensor,
    norm: str,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    backend = choose("modulate_backward", dy, dnormed, x, scale).name
    if backend == "triton":
        run = triton_kernel("modulate_backward")
        dx, dshift, dscale = run(dy, dnormed, x, scale, frame_ids, norm, eps)
        return dx, dshift, dscale
    if backend == "reference":
        dx, dshift, dscale = reference_modulate_backward(dy, dnormed, x, scale, frame_ids, norm, eps)
        return dx.clone() if dx is dy else dx, dshift, dscale
    dy, x, scale, frame_ids = dy.contiguous(), x.contiguous(), dense_rows(scale), frame_ids.contiguous()
    dnormed = dnormed.contiguous()
    dx = torch.empty_like(x)
    dshift, dscale = x.new_empty(scale.shape), x.new_empty(scale.shape)
    kernels().modulate_backward(
        dy.data_ptr(),
        dnormed.data_ptr() if dnormed.shape[0] else 0,
        x.data_ptr(),
        scale.data_ptr(),
        frame_ids.data_ptr(),
        dx.data_ptr(),
        dshift.data_ptr(),
        dscale.data_ptr(),
        x.shape[0],
        x.shape[1],
        scale.shape[0],
        scale.stride(0),
        NORMS.index(norm),
        eps,
    )
    return dx, dshift, dscale


@_backward_op.register_fake
def _backward_fake(
    dy: torch.Tensor,
    dnormed: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    frame_ids: torch.Tensor,
    norm: str,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), scale.new_empty(scale.shape), scale.new_empty(scale.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, _, scale, frame_ids, norm, eps, _ = inputs
    ctx.save_for_backward(x, scale, frame_ids)
    ctx.norm, ctx.eps = norm, eps


def _backward(ctx: Any, dy: torch.Tensor, dnormed: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, scale, frame_ids = ctx.saved_tensors
    dx, dshift, dscale = _backward_op(dy, dnormed, x, scale, frame_ids, ctx.norm, ctx.eps)
    return dx, dshift, dscale, None, None, None, None


_modulate_op.register_autograd(_backward, setup_context=_setup_context)
