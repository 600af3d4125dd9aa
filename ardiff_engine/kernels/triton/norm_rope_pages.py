# SPDX-License-Identifier: Apache-2.0
"""QK-norm, RoPE and pages of one's own, forward and backward.

    forward    zeros, then norm_rope_write.py
    backward   g = rope(gradient of q or k, -angle);  dbias = sum of g, dweight = sum of g n
               dx = r (g w - mean(g w) - n mean(g w n)), "rms" and "rms_full" without mean(g w), "none": g
               V: dx = gradient of its row

dq [T, H, D]; dk, dv [P, Hkv, R, D], strided, D dense -> dqkv [T, (H + 2 Hkv) D], sums float32. float32,
bfloat16 or float16; arithmetic in float32, angles as in the forward pass.
One kernel for q, k and v, launched for each. A program owns 16 tokens, all heads of one after the other, adds
up their share of dweight and dbias in registers and writes it out; the shares are added in order, so the same
call gives the same bits. Reads the gradients once, q and k once, writes dqkv once: 115 MB for 4680 tokens x
3 x 1536 in bfloat16, 34.3 us at 3.35 TB/s (H100); forward 86.3 MB and 28.8 MB of zeros, 34.3 us. Not yet run
on a GPU. Tokens without a page row (slot -1, or outside the pages: the forward pass reports it) give k and v
no gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ardiff_engine.kernels.triton import norm_rope_write
from ardiff_engine.kernels.triton.launch import ceil_div, dense_rows, on, power_of_2
from ardiff_engine.kernels.triton.turns import rope_cos_sin, rotate_pairs
from ardiff_engine.ops.norm_rope_checks import num_axes

Tensor = torch.Tensor
_TOKENS = 16


def run(
    qkv: Tensor, slots: Tensor, positions: Tensor, num_pages: int, page_rows: int, heads: int, kv_heads: int,
    head_dim: int, norm: str, q_weight: Tensor | None, q_bias: Tensor | None, k_weight: Tensor | None,
    k_bias: Tensor | None, eps: float, frequencies: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(q, K pages, V pages). See `ardiff_engine.ops.norm_rope_pages`."""
    k_pages, v_pages = (qkv.new_zeros(num_pages, kv_heads, page_rows, head_dim) for _ in "kv")
    q = norm_rope_write.run(
        qkv, k_pages, v_pages, slots, positions, heads, kv_heads, norm, q_weight, q_bias, k_weight, k_bias,
        eps, frequencies, None,
    )  # fmt: skip
    return q, k_pages, v_pages


def backward(
    dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, slots: Tensor | None, positions: Tensor, heads: int,
    kv_heads: int, norm: str, q_weight: Tensor | None, k_weight: Tensor | None, eps: float,
    frequencies: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dqkv, gradients of q weight, q bias, k weight, k bias in one row); no slots: token t has row t."""
    qkv, positions = qkv.contiguous(), positions.contiguous()
    dim, dqkv = dq.shape[2], torch.empty_like(qkv)
    # q is a page of one row per token, in the order of tokens.
    parts = (
        (dq.contiguous()[:, :, None], None, heads, 0, norm, q_weight, frequencies),
        (dk, slots, kv_heads, heads, norm, k_weight, frequencies),
        (dv, slots, kv_heads, heads + kv_heads, "none", None, None),
    )
    sums = [
        _part(gradient, at, qkv, positions, dqkv, count, first * dim, kind, weight, eps, angles)
        for gradient, at, count, first, kind, weight, angles in parts
    ]
    if norm == "none":
        sums = [torch.zeros(4 * dim, dtype=torch.float32, device=qkv.device)]
    return dqkv, torch.cat(sums)


def _part(
    gradient: Tensor, slots: Tensor | None, qkv: Tensor, positions: Tensor, dqkv: Tensor, heads: int,
    first: int, norm: str, weight: Tensor | None, eps: float, frequencies: Tensor | None,
) -> Tensor:  # fmt: skip
    """Writes columns `first` and on of dqkv; returns (dweight, dbias) in one row, empty without a norm."""
    gradient = dense_rows(gradient)
    pages, _, page_rows, dim = gradient.shape
    tokens, columns, rows = qkv.shape[0], max(2, power_of_2(dim)), power_of_2(heads)
    chunks = ceil_div(tokens, _TOKENS)
    size = 0 if norm == "none" else heads * dim if norm == "rms_full" else dim
    partial = torch.empty(chunks, 2 * size, dtype=torch.float32, device=qkv.device)
    if tokens:
        with on(qkv):
            _part_backward[(chunks,)](
                gradient, None if slots is None else slots.contiguous(), qkv, positions,
                None if weight is None else weight.contiguous(),
                None if frequencies is None else frequencies.to(torch.float64).contiguous(),
                dqkv, partial if size else None, tokens, pages * page_rows, float(eps), PAGE_ROWS=page_rows,
                PAGE=gradient.stride(0), HEAD=gradient.stride(1), ROW=gradient.stride(2),
                WIDTH=qkv.shape[1], FIRST=first, HEADS=heads, DIM=dim, NORM=norm, TOKENS=_TOKENS, ROWS=rows,
                COLUMNS=columns, AXES=num_axes(positions),
                num_warps=min(16, max(4, rows * columns // 512)), enable_fp_fusion=False,
            )  # fmt: skip
    return partial.sum(0)


@triton.jit
def _part_backward(
    gradient, slots, qkv, positions, weight, frequencies, dqkv, partial, tokens, num_slots, eps,
    PAGE_ROWS: tl.constexpr, PAGE: tl.constexpr, HEAD: tl.constexpr, ROW: tl.constexpr, WIDTH: tl.constexpr,
    FIRST: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, NORM: tl.constexpr, TOKENS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXES: tl.constexpr,
):  # fmt: skip
    head = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (head < HEADS)[:, None] & (column < DIM)[None, :]
    at = head[:, None] * DIM + column[None, :]
    # Weights are per column, for the full-width norm per column of the whole row.
    place = at
    if NORM != "rms_full":
        place = at - head[:, None] * DIM
    dweight = tl.zeros([ROWS, COLUMNS], tl.float32)
    dbias = tl.zeros([ROWS, COLUMNS], tl.float32)
    start = tl.program_id(0) * TOKENS
    for step in range(0, tl.minimum(TOKENS, tokens - start)):
        token = start.to(tl.int64) + step
        slot = token
        if slots is not None:
            slot = tl.load(slots + token)
        known = (slot >= 0) & (slot < num_slots)
        source = (slot // PAGE_ROWS) * PAGE + (slot % PAGE_ROWS) * ROW
        source += head.to(tl.int64)[:, None] * HEAD + column[None, :]
        g = tl.load(gradient + source, mask=inside & known, other=0.0).to(tl.float32)
        if frequencies is not None:
            cosine, sine = rope_cos_sin(positions, frequencies, token, DIM, COLUMNS, AXES)
            g = rotate_pairs(g, cosine[None, :], -sine[None, :], ROWS, COLUMNS // 2)
        to = token * WIDTH + FIRST + at
        if NORM != "none":
            n = tl.load(qkv + to, mask=inside, other=0.0).to(tl.float32)
            if NORM == "layer":
                n = tl.where(inside, n - (tl.sum(n, 1) / DIM)[:, None], 0.0)
            if NORM == "rms_full":
                reciprocal = tl.rsqrt(tl.sum(tl.sum(n * n, 1), 0) / (HEADS * DIM) + eps)
            else:
                reciprocal = tl.rsqrt(tl.sum(n * n, 1) / DIM + eps)[:, None]
            n = n * reciprocal
            dweight += g * n
            dbias += g
            if weight is not None:
                g = g * tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
            if NORM == "rms_full":
                g = g - n * (tl.sum(tl.sum(g * n, 1), 0) / (HEADS * DIM))
            else:
                along = n * (tl.sum(g * n, 1) / DIM)[:, None]
                if NORM == "layer":
                    g = g - (tl.sum(g, 1) / DIM)[:, None]
                g = g - along
            g = g * reciprocal
        tl.store(dqkv + to, g.to(dqkv.dtype.element_ty), mask=inside)
    if partial is not None:
        row = tl.program_id(0).to(tl.int64)
        if NORM == "rms_full":
            to = partial + row * (2 * HEADS * DIM) + at
            tl.store(to, dweight, mask=inside)
            tl.store(to + HEADS * DIM, dbias, mask=inside)
        else:
            sums = partial + row * (2 * DIM) + column
            tl.store(sums, tl.sum(dweight, 0), mask=column < DIM)
            tl.store(sums + DIM, tl.sum(dbias, 0), mask=column < DIM)
