# SPDX-License-Identifier: Apache-2.0
"""Bias, QK-norm, RoPE, and the write of K and V into pages: everything between a projection and attention.

    row = qkv + bias = [q heads | k heads | v heads];  q, k = rope(norm(q)), rope(norm(k));  v as it is

qkv [T, (H + 2 Hkv) D] -> q [T, H, D]; pages [P, Hkv, R, D], strided, D dense. float32, bfloat16 or float16;
arithmetic in float32, the rotary angle in float64, reduced before it is rounded. One program per token: it
holds the heads of q, k and v one after the other, so that full-width RMS needs no second pass.
Reads and writes every element once: 86.3 MB for 4680 tokens x 3 x 1536 in bfloat16, 25.7 us at 3.35 TB/s
(H100). Not yet run on a GPU.
Slots outside the pool are skipped and set the device's error bit; -1 is skipped. V keeps its bits where the
dtypes agree and there is no bias.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ardiff_engine.kernels.triton.launch import BAD_SLOT, on, power_of_2, report
from ardiff_engine.kernels.triton.turns import rope_cos_sin, rotate_pairs
from ardiff_engine.ops.cuda_launch import error_bits
from ardiff_engine.ops.norm_rope_checks import num_axes

Tensor = torch.Tensor


def run(
    qkv: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor | None, positions: Tensor, heads: int,
    kv_heads: int, norm: str, q_weight: Tensor | None, q_bias: Tensor | None, k_weight: Tensor | None,
    k_bias: Tensor | None, eps: float, frequencies: Tensor | None, qkv_bias: Tensor | None,
) -> Tensor:  # fmt: skip
    """q; K and V are in the pages. See `ardiff_engine.ops.norm_rope_write_`; no slots: token t to row t."""
    qkv, positions = qkv.contiguous(), positions.contiguous()
    slots = None if slots is None else slots.contiguous()
    frequencies = None if frequencies is None else frequencies.to(torch.float64).contiguous()
    tokens, (pages, _, page_rows, dim) = qkv.shape[0], k_pages.shape
    q = qkv.new_empty(tokens, heads, dim)
    if qkv.numel() == 0:
        return q
    affine = (q_weight, q_bias, k_weight, k_bias, qkv_bias)
    dense = [None if value is None else value.contiguous() for value in affine]
    with on(qkv):
        _norm_rope_write[(tokens,)](
            qkv, k_pages, v_pages, slots, positions, q, *dense, frequencies, error_bits(qkv.device),
            pages * page_rows, float(eps), PAGE_ROWS=page_rows,
            PAGE=k_pages.stride(0), HEAD=k_pages.stride(1), ROW=k_pages.stride(2), HEADS=heads,
            KV_HEADS=kv_heads, DIM=dim, NORM=norm, Q_ROWS=power_of_2(heads), KV_ROWS=power_of_2(kv_heads),
            COLUMNS=max(2, power_of_2(dim)), AXES=num_axes(positions), enable_fp_fusion=False,
        )  # fmt: skip
    return q


@triton.jit
def _norm_rope_write(
    qkv, k_pages, v_pages, slots, positions, q, q_weight, q_bias, k_weight, k_bias, qkv_bias, frequencies,
    errors, num_slots, eps, PAGE_ROWS: tl.constexpr, PAGE: tl.constexpr, HEAD: tl.constexpr,
    ROW: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, NORM: tl.constexpr,
    Q_ROWS: tl.constexpr, KV_ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXES: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    qkv += token * (HEADS + 2 * KV_HEADS) * DIM
    dtype = q.dtype.element_ty
    cosine = 1.0
    sine = 0.0
    if frequencies is not None:
        cosine, sine = rope_cos_sin(positions, frequencies, token, DIM, COLUMNS, AXES)
        cosine = cosine[None, :]
        sine = sine[None, :]

    head = tl.arange(0, Q_ROWS)
    at, inside = _heads(head, HEADS, DIM, COLUMNS)
    z = _biased(qkv, qkv_bias, 0, at, inside)
    z = _normalise(z, head, at, inside, q_weight, q_bias, eps, HEADS, DIM, NORM, Q_ROWS, COLUMNS)
    if frequencies is not None:
        z = rotate_pairs(z, cosine, sine, Q_ROWS, COLUMNS // 2)
    tl.store(q + token * HEADS * DIM + at, z.to(dtype), mask=inside)

    slot = token
    if slots is not None:
        slot = tl.load(slots + token)
        report(errors, (slot < -1) | (slot >= num_slots), BAD_SLOT)
    if (slot >= 0) & (slot < num_slots):
        kv_head = tl.arange(0, KV_ROWS)
        kv_at, kv_inside = _heads(kv_head, KV_HEADS, DIM, COLUMNS)
        to = (slot // PAGE_ROWS) * PAGE + (slot % PAGE_ROWS) * ROW
        to += kv_head.to(tl.int64)[:, None] * HEAD + tl.arange(0, COLUMNS)[None, :]
        key = _biased(qkv, qkv_bias, HEADS * DIM, kv_at, kv_inside)
        key = _normalise(
            key, kv_head, kv_at, kv_inside, k_weight, k_bias, eps, KV_HEADS, DIM, NORM, KV_ROWS, COLUMNS
        )
        if frequencies is not None:
            key = rotate_pairs(key, cosine, sine, KV_ROWS, COLUMNS // 2)
        tl.store(k_pages + to, key.to(dtype).to(k_pages.dtype.element_ty), mask=kv_inside)
        # float32 holds every value of the half-precision types: back and forth changes no bit.
        value = _biased(qkv, qkv_bias, (HEADS + KV_HEADS) * DIM, kv_at, kv_inside).to(dtype)
        tl.store(v_pages + to, value.to(v_pages.dtype.element_ty), mask=kv_inside)


@triton.jit
def _heads(head, HEADS: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr):
    """(offsets, mask) of [heads, columns] in a dense row of heads."""
    column = tl.arange(0, COLUMNS)
    return head[:, None] * DIM + column[None, :], (head < HEADS)[:, None] & (column < DIM)[None, :]


@triton.jit
def _biased(qkv, qkv_bias, FIRST: tl.constexpr, at, inside):
    z = tl.load(qkv + FIRST + at, mask=inside, other=0.0).to(tl.float32)
    if qkv_bias is not None:
        z += tl.load(qkv_bias + FIRST + at, mask=inside, other=0.0).to(tl.float32)
    return z


@triton.jit
def _normalise(
    z, head, at, inside, weight, bias, eps, HEADS: tl.constexpr, DIM: tl.constexpr, NORM: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    if NORM == "layer":
        z = tl.where(inside, z - (tl.sum(z, 1) / DIM)[:, None], 0.0)
    if NORM == "rms_full":
        z = z * tl.rsqrt(tl.sum(tl.sum(z * z, 1), 0) / (HEADS * DIM) + eps)
    elif NORM != "none":
        z = z * tl.rsqrt(tl.sum(z * z, 1) / DIM + eps)[:, None]
    # Weights are per column, for the full-width norm per column of the whole row.
    place = at
    if NORM != "rms_full":
        place = at - head[:, None] * DIM
    if weight is not None:
        z = z * tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        z = z + tl.load(bias + place, mask=inside, other=0.0).to(tl.float32)
    return z
