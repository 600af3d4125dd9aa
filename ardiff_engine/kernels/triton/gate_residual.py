# SPDX-License-Identifier: Apache-2.0
"""A gated residual with a gate row per frame, forward, in place and backward.

    out = residual + gate[id] (branch + bias)
    dbranch = dy gate[id];  dbias = sum of dbranch;  dgate = sum of dy (branch + bias) over a row's tokens

residual, branch [T, D] in float32, bfloat16 or float16; gate [M, D], rows may be strided; bias [D];
arithmetic in float32. A program owns 8 tokens x 128 columns. Reads both and writes one: 43.1 MB for
4680 x 1536 in bfloat16, 12.9 us at 3.35 TB/s (H100). Not yet run on a GPU.
Tokens with an id outside 0..M-1 get NaN and set the device's error bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ardiff_engine.kernels.triton.frame_sums import frame_sums
from ardiff_engine.kernels.triton.launch import BAD_FRAME_ID, ceil_div, dense_rows, on, report
from ardiff_engine.ops.cuda_launch import error_bits

Tensor = torch.Tensor
_TOKENS, _COLUMNS = 8, 128


def run(residual: Tensor, branch: Tensor, gate: Tensor, frame_ids: Tensor, bias: Tensor | None) -> Tensor:
    """See `ardiff_engine.ops.gate_residual`."""
    residual = residual.contiguous()
    out = torch.empty_like(residual)
    _launch(residual, branch, gate, frame_ids, bias, out)
    return out


def run_in_place(
    residual: Tensor, branch: Tensor, gate: Tensor, frame_ids: Tensor, bias: Tensor | None
) -> None:
    """Overwrites the contiguous `residual`: every element is read and written by one thread."""
    _launch(residual, branch, gate, frame_ids, bias, residual)


def backward(
    dy: Tensor, branch: Tensor, gate: Tensor, frame_ids: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dbranch, dgate, dbias); dbias is empty without a bias. The gradient of the residual is dy itself."""
    dy, branch, frame_ids = dy.contiguous(), branch.contiguous(), frame_ids.contiguous()
    dbranch = torch.empty_like(branch)
    _launch(None, dy, gate, frame_ids, None, dbranch)
    of_dy, of_product = frame_sums(dy, branch, None, frame_ids, gate.shape[0])
    if bias is None:
        return dbranch, of_product.to(gate.dtype), gate.new_empty(0)
    dgate = of_product + of_dy * bias.float()
    # Rows without tokens may hold anything, and 0 * NaN is NaN.
    of_branch = torch.where(of_dy == 0, 0, of_dy * gate.float())
    return dbranch, dgate.to(gate.dtype), of_branch.sum(0).to(bias.dtype)


def _launch(
    residual: Tensor | None, branch: Tensor, gate: Tensor, frame_ids: Tensor, bias: Tensor | None, out: Tensor
) -> None:
    branch, gate, frame_ids = branch.contiguous(), dense_rows(gate), frame_ids.contiguous()
    bias = None if bias is None else bias.contiguous()
    tokens, width = branch.shape
    if branch.numel():
        with on(branch):
            _gate[ceil_div(tokens, _TOKENS), ceil_div(width, _COLUMNS)](
                residual, branch, gate, frame_ids, bias, out, error_bits(out.device), tokens, gate.shape[0],
                WIDTH=width, STRIDE=gate.stride(0), TOKENS=_TOKENS, COLUMNS=_COLUMNS,
            )  # fmt: skip


@triton.jit
def _gate(
    residual, branch, gate, frame_ids, bias, out, errors, tokens, rows,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (token < tokens)[:, None] & (column < WIDTH)[None, :]
    at = token.to(tl.int64)[:, None] * WIDTH + column[None, :]
    ids = tl.load(frame_ids + token, mask=token < tokens, other=0)
    known = (ids >= 0) & (ids < rows)
    report(errors, (token < tokens) & (known == 0), BAD_FRAME_ID)
    row = ids.to(tl.int64)[:, None] * STRIDE + column[None, :]
    factor = tl.load(gate + row, mask=inside & known[:, None], other=float("nan")).to(tl.float32)
    value = tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        value += tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]
    value = factor * value
    if residual is not None:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)
