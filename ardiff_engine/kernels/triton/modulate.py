# SPDX-License-Identifier: Apache-2.0
"""Normalisation with a shift and scale row per frame, forward and backward.

    y = n (1 + scale[id]) + shift[id], n = (x - mean) r      "layer": r = 1 / sqrt(var + eps); "rms": mean 0;
                                                             "none": n = x
    g = dy (1 + scale) + dnormed;  dx = r (g - mean(g) - n mean(g n)), "rms" without mean(g)
    dshift = sum of dy, dscale = sum of dy n, over the tokens of a row (frame_sums.py)

x [T, D] in float32, bfloat16 or float16; shift, scale [M, D], rows may be strided; arithmetic in float32.
A program owns whole rows, 2048 elements or one row. Reads x and writes y once: 28.8 MB for 4680 x 1536 in
bfloat16, 8.6 us at 3.35 TB/s (H100); backward reads dy and x twice: 72 MB, 21 us. Not yet run on a GPU.
Tokens with an id outside 0..M-1 get NaN and set the device's error bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ardiff_engine.kernels.triton.frame_sums import frame_sums
from ardiff_engine.kernels.triton.launch import BAD_FRAME_ID, ceil_div, dense_rows, on, power_of_2, report
from ardiff_engine.ops.cuda_launch import error_bits

Tensor = torch.Tensor
_BLOCK = 2048


def run(
    x: Tensor, shift: Tensor, scale: Tensor, frame_ids: Tensor, norm: str, eps: float, return_normed: bool
) -> tuple[Tensor, Tensor]:
    """(y, norm(x)), the second without rows unless asked for. See `ardiff_engine.ops.modulate`."""
    x, frame_ids = x.contiguous(), frame_ids.contiguous()
    shift, scale = dense_rows(shift), dense_rows(scale)
    tokens, width = x.shape
    y, normed = torch.empty_like(x), x.new_empty(x.shape if return_normed else (0, width))
    if x.numel():
        columns, rows, warps = _block(width)
        with on(x):
            _modulate[(ceil_div(tokens, rows),)](
                x, shift, scale, frame_ids, y, normed if return_normed else None, error_bits(x.device),
                tokens, scale.shape[0], float(eps), WIDTH=width, SHIFT_STRIDE=shift.stride(0),
                SCALE_STRIDE=scale.stride(0), NORM=norm, ROWS=rows, COLUMNS=columns, num_warps=warps,
            )  # fmt: skip
    return y, normed


def backward(
    dy: Tensor, dnormed: Tensor, x: Tensor, scale: Tensor, frame_ids: Tensor, norm: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dshift, dscale); `dnormed` has no rows where norm(x) was not returned."""
    dy, x, dnormed, frame_ids = dy.contiguous(), x.contiguous(), dnormed.contiguous(), frame_ids.contiguous()
    scale = dense_rows(scale)
    tokens, width = x.shape
    dx = torch.empty_like(x)
    statistics = torch.empty(tokens, 2, dtype=torch.float32, device=x.device)
    if x.numel():
        columns, rows, warps = _block(width)
        with on(x):
            _modulate_backward[(ceil_div(tokens, rows),)](
                dy, dnormed if dnormed.shape[0] else None, x, scale, frame_ids, dx, statistics,
                tokens, scale.shape[0], float(eps), WIDTH=width, SCALE_STRIDE=scale.stride(0), NORM=norm,
                ROWS=rows, COLUMNS=columns, num_warps=warps,
            )  # fmt: skip
    dshift, dscale = frame_sums(dy, x, statistics, frame_ids, scale.shape[0])
    return dx, dshift.to(scale.dtype), dscale.to(scale.dtype)


def _block(width: int) -> tuple[int, int, int]:
    """(columns, rows, warps) of a program."""
    columns = power_of_2(width)
    return columns, max(1, _BLOCK // columns), 4 if columns <= 4096 else 16


@triton.jit
def _normalise(x, inside, eps, WIDTH: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr):
    """(n, mean, reciprocal), the last two [ROWS]; padding columns stay 0."""
    mean = tl.zeros([ROWS], tl.float32)
    reciprocal = tl.full([ROWS], 1.0, tl.float32)
    if NORM == "layer":
        mean = tl.sum(x, 1) / WIDTH
        x = tl.where(inside, x - mean[:, None], 0.0)
    if NORM != "none":
        reciprocal = tl.rsqrt(tl.sum(x * x, 1) / WIDTH + eps)
        x = x * reciprocal[:, None]
    return x, mean, reciprocal


@triton.jit
def _frame_rows(table, ids, column, inside, rows_of_table, STRIDE: tl.constexpr):
    """table[id] as float32; NaN for an id that the table does not have."""
    known = (ids >= 0) & (ids < rows_of_table)
    at = ids.to(tl.int64)[:, None] * STRIDE + column[None, :]
    return tl.load(table + at, mask=inside & known[:, None], other=float("nan")).to(tl.float32)


@triton.jit
def _modulate(
    x, shift, scale, frame_ids, y, normed, errors, tokens, rows_of_table, eps,
    WIDTH: tl.constexpr, SHIFT_STRIDE: tl.constexpr, SCALE_STRIDE: tl.constexpr, NORM: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (token < tokens)[:, None] & (column < WIDTH)[None, :]
    at = token.to(tl.int64)[:, None] * WIDTH + column[None, :]
    ids = tl.load(frame_ids + token, mask=token < tokens, other=0)
    report(errors, (token < tokens) & ((ids < 0) | (ids >= rows_of_table)), BAD_FRAME_ID)
    n, _, _ = _normalise(
        tl.load(x + at, mask=inside, other=0.0).to(tl.float32), inside, eps, WIDTH, NORM, ROWS
    )
    gain = 1.0 + _frame_rows(scale, ids, column, inside, rows_of_table, SCALE_STRIDE)
    offset = _frame_rows(shift, ids, column, inside, rows_of_table, SHIFT_STRIDE)
    tl.store(y + at, (n * gain + offset).to(y.dtype.element_ty), mask=inside)
    if normed is not None:
        tl.store(normed + at, n.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _modulate_backward(
    dy, dnormed, x, scale, frame_ids, dx, statistics, tokens, rows_of_table, eps,
    WIDTH: tl.constexpr, SCALE_STRIDE: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = token < tokens
    column = tl.arange(0, COLUMNS)
    inside = exists[:, None] & (column < WIDTH)[None, :]
    at = token.to(tl.int64)[:, None] * WIDTH + column[None, :]
    ids = tl.load(frame_ids + token, mask=exists, other=0)
    n, mean, reciprocal = _normalise(
        tl.load(x + at, mask=inside, other=0.0).to(tl.float32), inside, eps, WIDTH, NORM, ROWS
    )
    tl.store(statistics + token * 2, mean, mask=exists)
    tl.store(statistics + token * 2 + 1, reciprocal, mask=exists)
    gain = 1.0 + _frame_rows(scale, ids, column, inside, rows_of_table, SCALE_STRIDE)
    g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32) * gain
    if dnormed is not None:
        g += tl.load(dnormed + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.where(inside, g, 0.0)
    if NORM != "none":
        along = tl.sum(g * n, 1) / WIDTH
        offset = tl.zeros([ROWS], tl.float32)
        if NORM == "layer":
            offset = tl.sum(g, 1) / WIDTH
        g = reciprocal[:, None] * (g - offset[:, None] - n * along[:, None])
    tl.store(dx + at, g.to(dx.dtype.element_ty), mask=inside)
