# SPDX-License-Identifier: Apache-2.0
"""One step of a linear solver: x0 = p x + q out within [-limit, limit], with out = sum of weights[branch]
outs[branch]; x' = a x + b x0 + e eps + c1 h1 + c2 h2 + c3 h3.

x [N, elements] and outs [B, N, elements] in float32, bfloat16 or float16; weights float32 [B, N];
coefficients float32 [N, 9] (p, q, a, b, e, c1, c2, c3, limit). A program owns 1024 elements of a row. A term
whose coefficient is 0 is not read; one that is needed and was not given makes its row NaN. (B + 3) elements
of traffic per element without noise and history: 16 bytes in float32 at B = 1, 4.8 ns per 1000 elements at
3.35 TB/s (H100). Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ardiff_engine.kernels.triton.launch import ceil_div, on
from ardiff_engine.kernels.triton.philox_normal import BLOCK, normals, row_block

Tensor = torch.Tensor


def run(
    x: Tensor, outs: Tensor, weights: Tensor, coefficients: Tensor, history1: Tensor | None,
    history2: Tensor | None, history3: Tensor | None, keys: Tensor | None, noise: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(x', x0); see `ardiff_engine.ops.solver_step`."""
    x, outs = x.contiguous(), outs.contiguous()
    weights = weights.to(torch.float32).contiguous()
    coefficients = coefficients.to(torch.float32).contiguous()
    optional = [None if t is None else t.contiguous() for t in (history1, history2, history3, noise)]
    result, x0 = torch.empty_like(x), torch.empty_like(x)
    rows, elements = x.shape[0], x[0].numel() if x.shape[0] else 0
    if rows and elements:
        with on(x):
            _step[(ceil_div(elements, BLOCK) * rows,)](
                x, outs, weights, coefficients, *optional, keys, result, x0,
                outs.shape[0], rows, elements, BLOCK=BLOCK,
            )  # fmt: skip
    return result, x0


@triton.jit
def _step(
    x, outs, weights, coefficients, history1, history2, history3, noise, keys, result, x0, branches, rows,
    elements, BLOCK: tl.constexpr,
):  # fmt: skip
    row, first = row_block(elements, BLOCK)
    column = first + tl.arange(0, BLOCK)
    inside = column < elements
    at = row * elements + column
    coefficients += row * 9
    p = tl.load(coefficients)
    q = tl.load(coefficients + 1)
    a = tl.load(coefficients + 2)
    b = tl.load(coefficients + 3)
    e = tl.load(coefficients + 4)
    limit = tl.load(coefficients + 8)
    out = tl.zeros([BLOCK], tl.float32)
    source = outs + at
    for branch in range(0, branches):
        out += _term(tl.load(weights + branch * rows + row), source, inside)
        source += (row * 0 + rows) * elements  # int64: all branches together may exceed 2^31 elements
    state = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    clean = p * state + q * out
    # Not tl.clamp, and not minimum: NaN must stay NaN.
    clean = tl.where(clean > limit, limit, tl.where(clean < -limit, -limit, clean))
    moved = a * state + b * clean
    if noise is not None:
        moved += _term(e, noise + at, inside)
    elif keys is not None:
        if e != 0.0:
            moved += e * normals(keys, row, first, BLOCK)
    else:
        moved += _missing(e)
    if history1 is not None:
        moved += _term(tl.load(coefficients + 5), history1 + at, inside)
    else:
        moved += _missing(tl.load(coefficients + 5))
    if history2 is not None:
        moved += _term(tl.load(coefficients + 6), history2 + at, inside)
    else:
        moved += _missing(tl.load(coefficients + 6))
    if history3 is not None:
        moved += _term(tl.load(coefficients + 7), history3 + at, inside)
    else:
        moved += _missing(tl.load(coefficients + 7))
    tl.store(result + at, moved.to(result.dtype.element_ty), mask=inside)
    tl.store(x0 + at, clean.to(x0.dtype.element_ty), mask=inside)


@triton.jit
def _term(coefficient, source, inside):
    """coefficient times a term, which is not read where the coefficient is 0: it may hold anything."""
    needed = tl.where(inside, coefficient, 0.0) != 0.0
    return coefficient * tl.load(source, mask=needed, other=0.0).to(tl.float32)


@triton.jit
def _missing(coefficient):
    return tl.where(coefficient == 0.0, 0.0, float("nan"))
