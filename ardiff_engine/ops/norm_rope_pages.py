# SPDX-License-Identifier: Apache-2.0
"""QK-norm, RoPE and pages of one's own, differentiable: what training puts between the QKV projection and
`frame_attention`.

The formula is `norm_rope`'s. K and V go to row `slots[t]` of new pages, in one pass over qkv; the backward
pass is one more.
"""

from __future__ import annotations

from typing import Any

import torch

from ardiff_engine.arguments import integer, number
from ardiff_engine.errors import PageTableError, TensorError, explain
from ardiff_engine.ops import checks
from ardiff_engine.ops.backend import choose, triton_kernel
from ardiff_engine.ops.cuda_launch import address
from ardiff_engine.ops.dispatch import traced, without_autocast
from ardiff_engine.ops.native_kernels import kernels
from ardiff_engine.ops.norm_rope import (
    affine_sizes,
    reference_norm_rope,
    reference_norm_rope_backward,
)
from ardiff_engine.ops.norm_rope_checks import NORMS, check_norm_rope, num_axes
from ardiff_engine.ops.norm_rope_write import norm_rope_write_

Tensor = torch.Tensor
Three = tuple[Tensor, Tensor, Tensor]


def norm_rope_pages(
    qkv: Tensor,
    slots: Tensor,
    positions: Tensor,
    *,
    num_pages: int,
    page_rows: int,
    heads: int,
    kv_heads: int | None = None,
    norm: str = "none",
    q_weight: Tensor | None = None,
    q_bias: Tensor | None = None,
    k_weight: Tensor | None = None,
    k_bias: Tensor | None = None,
    eps: float = 1e-5,
    frequencies: Tensor | None = None,
) -> Three:
    """qkv [T, (heads + 2 kv_heads) d] -> q [T, heads, d], K and V [num_pages, kv_heads, page_rows, d].

    Differentiable in qkv, weights and biases, by kernels once: float32 on the CPU (norm "none", "layer" or
    "rms") and GPUs. Traced by torch.compile it is the formula in PyTorch.

    Args:
        qkv: rows of q, k and v of all heads.
        slots: int64 or int32 [T], page * page_rows + row, all distinct; -1: K and V of this token are
            dropped.
        num_pages, page_rows: size of the new pages; rows that no slot names are 0.
        positions, heads, kv_heads, norm, q_weight, q_bias, k_weight, k_bias, eps, frequencies: as in
            `norm_rope`.

    Raises:
        ConfigError: an unknown norm, or head counts that do not divide the row.
        TensorError: a wrong shape, dtype or device.
        PageTableError: a slot outside the pages (read on the CPU only).
    """
    qkv = checks.tensor("qkv", qkv)
    slots, positions = checks.indices("slots", slots), checks.indices("positions", positions)
    q_weight, q_bias = checks.optional("q_weight", q_weight), checks.optional("q_bias", q_bias)
    k_weight, k_bias = checks.optional("k_weight", k_weight), checks.optional("k_bias", k_bias)
    frequencies = checks.optional("frequencies", frequencies)
    heads, eps = integer("heads", heads), number("eps", eps)
    kv_heads = heads if kv_heads is None else integer("kv_heads", kv_heads)
    affine = (q_weight, q_bias, k_weight, k_bias)
    head_dim = check_norm_rope(qkv, positions, heads, kv_heads, norm, affine, frequencies, None)
    num_pages = integer("num_pages", num_pages, high=2**31)
    page_rows = integer("page_rows", page_rows, high=2**31)
    _check(qkv, slots, num_pages, page_rows)
    backend = "reference" if torch.compiler.is_compiling() else choose("norm_rope_pages", qkv, *affine).name
    if backend == "reference" or (backend == "cpu" and norm == "rms_full"):
        return reference_norm_rope_pages(
            qkv, slots, positions, num_pages, page_rows, heads, kv_heads, norm, *affine, eps, frequencies
        )
    made: Three = torch.ops.ardiff.norm_rope_pages(
        qkv, slots, positions, num_pages, page_rows, heads, kv_heads, head_dim, norm, *affine, eps,
        frequencies,
    )  # fmt: skip
    return made


@without_autocast
def reference_norm_rope_pages(
    qkv: Tensor, slots: Tensor, positions: Tensor, num_pages: int, page_rows: int, heads: int, kv_heads: int,
    norm: str, q_weight: Tensor | None, q_bias: Tensor | None, k_weight: Tensor | None,
    k_bias: Tensor | None, eps: float, frequencies: Tensor | None,
) -> Three:  # fmt: skip
    """The specification in PyTorch."""
    q, k, v = reference_norm_rope(
        qkv, positions, heads, kv_heads, norm, q_weight, q_bias, k_weight, k_bias, eps, frequencies, None
    )
    # Dropped tokens go to one page more, which is then cut off.
    rows = torch.where(slots < 0, num_pages * page_rows, slots)

    def paged(x: Tensor) -> Tensor:
        empty = x.new_zeros((num_pages + 1) * page_rows, *x.shape[1:])
        return empty.index_put((rows,), x).unflatten(0, (-1, page_rows))[:num_pages].transpose(1, 2)

    return q, paged(k).contiguous(), paged(v).contiguous()


def _check(qkv: Tensor, slots: Tensor, num_pages: int, page_rows: int) -> None:
    if slots.dtype != torch.int64 or slots.shape != qkv.shape[:1] or slots.device != qkv.device:
        raise TensorError(
            explain(
                "slots",
                got=f"{slots.dtype} {list(slots.shape)} on {slots.device}",
                expected=f"torch.int64 [{qkv.shape[0]}] on {qkv.device}",
                fix="Pass page * page_rows + row per token, -1 to drop its K and V.",
            )
        )
    if num_pages < 0 or page_rows < 1:
        raise TensorError(
            explain(
                "num_pages, page_rows",
                got=f"{num_pages}, {page_rows}",
                expected="0 or more, 1 or more",
                fix="Count the pages that the slots name.",
            )
        )
    if slots.device.type == "cpu" and slots.numel() and not traced(slots):
        low, high = (int(x) for x in torch.aminmax(slots))
        if low < -1 or high >= num_pages * page_rows:
            raise PageTableError(
                explain(
                    "slots",
                    got=low if low < -1 else high,
                    expected=f"-1..{num_pages * page_rows - 1}",
                    fix="A slot is page * page_rows + row.",
                )
            )


def _run(
    qkv: Tensor, slots: Tensor, positions: Tensor, num_pages: int, page_rows: int, heads: int, kv_heads: int,
    head_dim: int, norm: str, q_weight: Tensor | None, q_bias: Tensor | None, k_weight: Tensor | None,
    k_bias: Tensor | None, eps: float, frequencies: Tensor | None,
) -> Three:  # fmt: skip
    if choose("norm_rope_pages", qkv, q_weight, q_bias, k_weight, k_bias).name == "triton":
        q, k_pages, v_pages = triton_kernel("norm_rope_pages")(
            qkv, slots, positions, num_pages, page_rows, heads, kv_heads, head_dim, norm, q_weight, q_bias,
            k_weight, k_bias, eps, frequencies,
        )  # fmt: skip
        return q, k_pages, v_pages
    k_pages, v_pages = (qkv.new_zeros(num_pages, kv_heads, page_rows, head_dim) for _ in "kv")
    with torch.no_grad():
        q = norm_rope_write_(
            qkv,
            k_pages,
            v_pages,
            slots,
            positions,
            heads=heads,
            kv_heads=kv_heads,
            norm=norm,
            q_weight=q_weight,
            q_bias=q_bias,
            k_weight=k_weight,
            k_bias=k_bias,
            eps=eps,
            frequencies=frequencies,
        )
    return q, k_pages, v_pages


def _run_backward(
    dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, slots: Tensor, positions: Tensor, heads: int,
    kv_heads: int, norm: str, q_weight: Tensor | None, k_weight: Tensor | None, eps: float,
    frequencies: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dqkv, gradients of q weight, q bias, k weight, k bias in one row)"""
    backend = choose("norm_rope_pages_backward", dq, dk, dv, qkv, q_weight, k_weight).name
    if backend == "triton":
        dqkv, daffine = triton_kernel("norm_rope_pages_backward")(
            dq, dk, dv, qkv, slots, positions, heads, kv_heads, norm, q_weight, k_weight, eps, frequencies
        )
        return dqkv, daffine
    if backend == "reference" or norm == "rms_full":
        page, row = slots.clamp_min(0) // dk.shape[2], slots.clamp_min(0) % dk.shape[2]
        dk, dv = (torch.where(slots[:, None, None] < 0, 0, t[page, :, row]) for t in (dk, dv))
        dqkv, daffine, _ = reference_norm_rope_backward(
            dq, dk, dv, qkv, positions, heads, kv_heads, norm, q_weight, k_weight, eps, frequencies, None
        )
        return dqkv, daffine
    qkv, dq, dk, dv = (t.contiguous() for t in (qkv, dq, dk, dv))
    slots, positions = slots.contiguous(), positions.contiguous()
    weights = [None if t is None else t.contiguous() for t in (q_weight, k_weight)]
    frequencies = None if frequencies is None else frequencies.double().contiguous()
    tokens, _, dim = dq.shape
    dqkv, daffine = torch.empty_like(qkv), qkv.new_empty(4, dim)
    angles = None if frequencies is None else qkv.new_empty(tokens, 2, dim)
    partial = qkv.new_empty(-(-tokens // kernels().NORM_ROPE_CHUNK), 4, dim)
    kernels().norm_rope_write_backward(
        tuple(
            map(
                address,
                (qkv, dk, dv, slots, positions, dq, *weights, frequencies, angles, dqkv, daffine, partial),
            )
        ),
        (tokens, heads, kv_heads, dim, num_axes(positions), dk.shape[2], *dk.stride()[:3]),
        NORMS.index(norm),
        eps,
    )
    return dqkv, daffine.flatten()


_op = torch.library.custom_op("ardiff::norm_rope_pages", _run, mutates_args=())
_backward_op = torch.library.custom_op("ardiff::norm_rope_pages_backward", _run_backward, mutates_args=())


@_op.register_fake
def _(
    qkv: Tensor, slots: Tensor, positions: Tensor, num_pages: int, page_rows: int, heads: int, kv_heads: int,
    head_dim: int, *_rest: Any
) -> Three:  # fmt: skip
    pages = (num_pages, kv_heads, page_rows, head_dim)
    return qkv.new_empty(qkv.shape[0], heads, head_dim), qkv.new_empty(pages), qkv.new_empty(pages)


@_backward_op.register_fake
def _(
    dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, slots: Tensor, positions: Tensor, heads: int,
    kv_heads: int, norm: str, *_rest: Any
) -> tuple[Tensor, Tensor]:  # fmt: skip
    sizes = affine_sizes(heads, kv_heads, dq.shape[2], norm)
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    return torch.empty_like(qkv), qkv.new_empty(sum(sizes), dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Three) -> None:
    (
        qkv, slots, positions, _, _, ctx.heads, ctx.kv_heads, _, ctx.norm, q_weight, q_bias, k_weight, k_bias,
        ctx.eps, frequencies,
    ) = inputs  # fmt: skip
    ctx.save_for_backward(qkv, slots, positions, q_weight, k_weight, frequencies)
    ctx.affine = tuple(t is not None for t in (q_weight, q_bias, k_weight, k_bias))


def _differentiate(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
    qkv, slots, positions, q_weight, k_weight, frequencies = ctx.saved_tensors
    dqkv, daffine = _backward_op(
        dq, dk, dv, qkv, slots, positions, ctx.heads, ctx.kv_heads, ctx.norm, q_weight, k_weight, ctx.eps,
        frequencies,
    )  # fmt: skip
    sizes = affine_sizes(ctx.heads, ctx.kv_heads, dq.shape[2], ctx.norm)
    affine = (g if given else None for g, given in zip(daffine.split(sizes), ctx.affine, strict=True))
    return (dqkv, *(None,) * 8, *affine, None, None)


_op.register_autograd(_differentiate, setup_context=_save)
