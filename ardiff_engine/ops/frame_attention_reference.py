# SPDX-License-Identifier: Apache-2.0
"""The specification of frame attention, in PyTorch: one dense softmax per query frame over the rows it sees.

Any device and float dtype; half-precision inputs are computed in float32. Every kernel is tested against the
same float64 oracle as this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ardiff_engine.ops.dispatch import without_autocast

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class _View:
    """One query frame: its tokens, and for each key that it sees the page, the row and the bias."""

    tokens: slice
    page: Tensor
    row: Tensor
    bias: Tensor | None


def _views(
    frame_ptr: Tensor, group_ptr: Tensor, page_ptr: Tensor, pages: Tensor, valid: Tensor, seen: Tensor,
    bias: Tensor | None,
) -> Iterator[_View]:  # fmt: skip
    """The query frames that have tokens and see at least one row."""
    tokens, groups, entries, limits = (t.tolist() for t in (frame_ptr, group_ptr, page_ptr, seen))
    for g, first in enumerate(entries[:-1]):
        for frame in range(groups[g], groups[g + 1]):
            listed = slice(first, first + limits[frame])
            rows = valid[listed].long()
            page = torch.repeat_interleave(pages[listed].long(), rows)
            if page.numel() == 0 or tokens[frame] == tokens[frame + 1]:
                continue
            starts = torch.repeat_interleave(torch.cumsum(rows, 0) - rows, rows)
            row = torch.arange(page.numel(), device=page.device) - starts
            extra = None if bias is None else torch.repeat_interleave(bias[listed], rows)
            yield _View(slice(tokens[frame], tokens[frame + 1]), page, row, extra)


def _gather(pool: Tensor, view: _View, share: int) -> Tensor:
    """The rows of a pool that a query frame sees, once per query head: [keys, H, D]."""
    return pool[view.page, :, view.row].repeat_interleave(share, dim=1)


def _weights(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax weights [H, tokens, keys] and lse [H, tokens] from q [tokens, H, D] and k [keys, H, D].

    Weights are 0 where every visible row has bias -inf. What all biases share is put aside, and logits are
    added in float64: beside a bias of 1e9, float32 would keep nothing of q k.
    """
    logits = scale * torch.einsum("thd,nhd->htn", q, k).double()
    shared = logits.new_zeros(())
    if bias is not None:
        shared = _shift(bias.double().amax())
        logits = logits + (bias.double() - shared)
    top = _shift(logits.amax(-1, keepdim=True))
    weights = torch.exp(logits - top)
    total = weights.sum(-1, keepdim=True)
    weights = weights / torch.where(total == 0, 1.0, total)
    return weights.to(q.dtype), (shared + top + total.log())[..., 0].to(q.dtype)


def _shift(largest: Tensor) -> Tensor:
    """What a softmax subtracts: the largest of its logits; 0 where that is -inf, as nothing is visible."""
    return torch.where(largest == float("-inf"), 0.0, largest)


def working_dtype(q: Tensor) -> torch.dtype:
    """In which `q` is computed, and the dtype of lse."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


@without_autocast
def reference_frame_attention(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, frame_ptr: Tensor, group_ptr: Tensor, page_ptr: Tensor,
    pages: Tensor, valid: Tensor, seen: Tensor, bias: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The specification of `frame_attention`, in PyTorch. Half-precision inputs are computed in float32."""
    dtype, share = working_dtype(q), q.shape[1] // k_pages.shape[1]
    o = torch.zeros(q.shape, dtype=dtype, device=q.device)
    lse = torch.full(q.shape[:2], float("-inf"), dtype=dtype, device=q.device)
    for view in _views(frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias):
        k, v = (_gather(pool, view, share).to(dtype) for pool in (k_pages, v_pages))
        weights, total = _weights(q[view.tokens].to(dtype), k, view.bias, scale)
        o[view.tokens] = torch.einsum("htn,nhd->thd", weights, v)
        lse[view.tokens] = total.T
    return o.to(q.dtype), lse


@without_autocast
def reference_frame_attention_backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k_pages: Tensor, v_pages: Tensor, o: Tensor, lse: Tensor,
    frame_ptr: Tensor, group_ptr: Tensor, page_ptr: Tensor, pages: Tensor, valid: Tensor, seen: Tensor,
    bias: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k_pages and v_pages.

    P = softmax(S), delta = rowsum(do * o) - dlse, dS = P * (do v^T - delta);
    dq = scale dS k, dk = scale dS^T q, dv = P^T do.
    """
    dtype, share = working_dtype(q), q.shape[1] // k_pages.shape[1]
    dq = torch.zeros(q.shape, dtype=dtype, device=q.device)
    dk, dv = (torch.zeros(x.shape, dtype=dtype, device=q.device) for x in (k_pages, v_pages))
    delta = (dout.to(dtype) * o.to(dtype)).sum(-1)
    if dlse is not None:
        delta = delta - dlse.to(dtype)
    for view in _views(frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias):
        k, v = (_gather(pool, view, share).to(dtype) for pool in (k_pages, v_pages))
        queries, grad = q[view.tokens].to(dtype), dout[view.tokens].to(dtype)
        p, _ = _weights(queries, k, view.bias, scale)
        ds = scale * p * (torch.einsum("thd,nhd->htn", grad, v) - delta[view.tokens].T[..., None])
        dq[view.tokens] = torch.einsum("htn,nhd->thd", ds, k)
        for total, weights, rows in ((dk, ds, queries), (dv, p, grad)):
            per_kv_head = torch.einsum("htn,thd->nhd", weights, rows).unflatten(1, (-1, share)).sum(2)
            total.transpose(1, 2).index_put_((view.page, view.row), per_kv_head, accumulate=True)
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)
