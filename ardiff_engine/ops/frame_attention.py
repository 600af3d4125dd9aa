# SPDX-License-Identifier: Apache-2.0
"""Attention over page lists: every query frame sees the pages that its table lists, and nothing else.

    o_t = sum_i softmax_i(scale q_t . k_i + bias_page(i)) v_i        i over the rows that token t's frame sees

Masks do not exist: windows, sinks, causal order and sharing are page lists (docs/contracts.md).
With one page per frame and `seen` rising by frame this is the temporal causal attention of AR-Diffusion
(arXiv 2503.07418, section 3).
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch

from ardiff_engine._native import native
from ardiff_engine.arguments import instance, number
from ardiff_engine.errors import PageTableError, TensorError, explain
from ardiff_engine.ops import checks
from ardiff_engine.ops.backend import choose, triton_kernel
from ardiff_engine.ops.dispatch import needs_grad, watched
from ardiff_engine.ops.frame_attention_cuda import frame_attention_cuda
from ardiff_engine.ops.frame_attention_reference import (
    reference_frame_attention,
    reference_frame_attention_backward,
    working_dtype,
)
from ardiff_engine.ops.frame_table import FrameTable

Tensor = torch.Tensor


@overload
def frame_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    table: FrameTable,
    *,
    scale: float | None = None,
    return_lse: Literal[False] = False,
) -> Tensor: ...
@overload
def frame_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    table: FrameTable,
    *,
    scale: float | None = None,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def frame_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    table: FrameTable,
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of packed query tokens over their pages. Differentiable in q and pages, also through lse.

    Args:
        q: [T, H, D], T = table.num_tokens, any float dtype.
        k_pages, v_pages: [P, Hkv, R, D], dtype and device of q; Hkv divides H, and query head h reads kv head
            h // (H / Hkv). Only rows that the table lists are read; their gradients are zero elsewhere.
        table: on the device of q.
        scale: factor of the logits; None: 1 / sqrt(D).
        return_lse: return (o, lse), lse [T, H] = log of the softmax denominator (natural, bias included).

    Returns:
        o [T, H, D] in the dtype of q; a query frame with an empty view gives o = 0 and lse = -inf. In float32
        on the CPU the result is the same, bit for bit, for any thread count, page ids and neighbours in the
        batch.

    Raises:
        TensorError: shapes, dtypes or devices that do not fit.
        PageTableError: page ids or rows beyond the pool.
    """
    q, k_pages, v_pages = (
        checks.tensor(n, t) for n, t in (("q", q), ("k_pages", k_pages), ("v_pages", v_pages))
    )
    _check(q, k_pages, v_pages, instance("table", table, FrameTable))
    scale = int(q.shape[-1]) ** -0.5 if scale is None else number("scale", scale)
    dispatched = watched(q, k_pages, v_pages) or needs_grad(q, k_pages, v_pages)
    run = _op if dispatched else _forward
    o, lse = run(
        q, k_pages, v_pages, table.frame_ptr, table.group_ptr, table.page_ptr, table.pages, table.valid,
        table.seen, table.bias, scale,
    )  # fmt: skip
    return (o, lse) if return_lse else o


def _check(q: Tensor, k_pages: Tensor, v_pages: Tensor, table: FrameTable) -> None:
    checks.shape("q", q, (table.num_tokens, "H", "D"))
    checks.shape("k_pages", k_pages, ("P", "Hkv", "R", q.shape[2]))
    checks.shape("v_pages", v_pages, tuple(k_pages.shape))
    checks.floating("q", q)
    checks.same("k_pages", k_pages, "q", q)
    checks.same("v_pages", v_pages, "q", q)
    checks.device("table", checks.tensor("table", table.pages), q.device)
    if q.shape[1] == 0 or q.shape[2] == 0 or k_pages.shape[1] == 0 or q.shape[1] % k_pages.shape[1]:
        raise TensorError(
            explain(
                "heads of q and k_pages",
                got=f"{q.shape[1]} and {k_pages.shape[1]} of dimension {q.shape[2]}",
                expected="a multiple of the kv heads, none of them 0",
                fix="Check the order of dimensions: q [T, H, D], pages [P, Hkv, R, D].",
            )
        )
    if table.pool_pages > k_pages.shape[0]:
        raise PageTableError(
            explain(
                "largest page id in the table",
                got=table.pool_pages - 1,
                expected=f"less than {k_pages.shape[0]}, the pages of the pool",
                fix="Build the table for this pool.",
            )
        )
    if table.page_rows > k_pages.shape[2]:
        raise PageTableError(
            explain(
                "largest `valid` in the table",
                got=table.page_rows,
                expected=f"at most {k_pages.shape[2]}, the rows of a page",
                fix="List a further page for the remaining rows.",
            )
        )


def _forward(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, frame_ptr: Tensor, group_ptr: Tensor, page_ptr: Tensor,
    pages: Tensor, valid: Tensor, seen: Tensor, bias: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    backend = choose("frame_attention", q, k_pages, v_pages).name
    if backend == "cuda":
        return frame_attention_cuda(
            q, k_pages, v_pages, frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias, scale
        )
    if backend == "triton":
        o, lse = triton_kernel("frame_attention")(
            q, k_pages, v_pages, frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias, scale
        )
        return o, lse
    if backend == "reference":
        return reference_frame_attention(
            q, k_pages, v_pages, frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias, scale
        )
    q, k_pages, v_pages = (_dense_rows(t) for t in (q, k_pages, v_pages))
    o, lse = q.new_empty(q.shape), q.new_empty(q.shape[:2])
    try:
        native().frame_attention(  # type: ignore[union-attr]
            _addresses(q, k_pages, v_pages, o, lse),
            (*_addresses(frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias), group_ptr.numel() - 1),
            _sizes(q, k_pages),
            _strides(q, k_pages, v_pages),
            scale,
        )
    except IndexError as error:
        raise _edited_table(error) from error
    return o, lse


def _backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k_pages: Tensor, v_pages: Tensor, o: Tensor, lse: Tensor,
    frame_ptr: Tensor, group_ptr: Tensor, page_ptr: Tensor, pages: Tensor, valid: Tensor, seen: Tensor,
    bias: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    backend = choose("frame_attention_backward", q, k_pages, v_pages).name
    if backend == "triton":
        dq, dk, dv = triton_kernel("frame_attention_backward")(
            dout, dlse, q, k_pages, v_pages, o, lse,
            frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias, scale,
        )  # fmt: skip
        return dq, dk, dv
    if backend == "reference":
        return reference_frame_attention_backward(
            dout,
            dlse,
            q,
            k_pages,
            v_pages,
            o,
            lse,
            frame_ptr,
            group_ptr,
            page_ptr,
            pages,
            valid,
            seen,
            bias,
            scale,
        )
    q, k_pages, v_pages = (_dense_rows(t) for t in (q, k_pages, v_pages))
    dout, dlse = dout.contiguous(), None if dlse is None else dlse.contiguous()
    o, lse = o.contiguous(), lse.contiguous()
    dq, dk, dv = q.new_empty(q.shape), q.new_zeros(k_pages.shape), q.new_zeros(v_pages.shape)
    try:
        native().frame_attention_backward(  # type: ignore[union-attr]
            _addresses(q, k_pages, v_pages, o, lse),
            _addresses(dout, dlse, dq, dk, dv),
            (*_addresses(frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias), group_ptr.numel() - 1),
            _sizes(q, k_pages),
            _strides(q, k_pages, v_pages),
            scale,
        )
    except IndexError as error:
        raise _edited_table(error) from error
    return dq, dk, dv


def _edited_table(error: IndexError) -> PageTableError:
    return PageTableError(
        explain(
            "tensors of the table",
            got=f"values that do not fit ({error})",
            expected="those of the table when it was built",
            fix="Do not edit a FrameTable: build another one.",
        )
    )


def _dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(0 if t is None else t.data_ptr() for t in tensors)


def _sizes(q: Tensor, k_pages: Tensor) -> tuple[int, ...]:
    return q.shape[0], k_pages.shape[0], q.shape[1], k_pages.shape[1], q.shape[2], k_pages.shape[2]


def _strides(q: Tensor, k_pages: Tensor, v_pages: Tensor) -> tuple[int, ...]:
    return (*q.stride()[:2], *k_pages.stride()[:3], *v_pages.stride()[:3])


# Registration: schema, fake tensors, autograd. Used when gradients or torch.compile are involved.

_op = torch.library.custom_op("ardiff::frame_attention", _forward, mutates_args=())
_backward_op = torch.library.custom_op("ardiff::frame_attention_backward", _backward, mutates_args=())


@_op.register_fake
def _(q: Tensor, k_pages: Tensor, v_pages: Tensor, *_table: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=working_dtype(q))


@_backward_op.register_fake
def _(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k_pages: Tensor, v_pages: Tensor, *_rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k_pages.new_empty(k_pages.shape), v_pages.new_empty(v_pages.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.scale = scale
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, o, lse = ctx.saved_tensors
    nothing = (None,) * (len(inputs) + 1 - 3)
    if dout is None and dlse is None:
        return (None, None, None, *nothing)
    dout = torch.zeros_like(o) if dout is None else dout
    return (*_backward_op(dout, dlse, *inputs[:3], o, lse, *inputs[3:], ctx.scale), *nothing)


_op.register_autograd(_differentiate, setup_context=_save)
