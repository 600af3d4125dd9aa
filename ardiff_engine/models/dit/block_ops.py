# SPDX-License-Identifier: Apache-2.0
"""Blocks over pages, op by op: on any device and in any dtype what `native_block` does in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ardiff_engine import ops
from ardiff_engine.errors import PageTableError
from ardiff_engine.models.cell_batch import CellBatch, ConditionPages
from ardiff_engine.models.dit.block_spec import BlockSpec, Branch, Heads
from ardiff_engine.models.dit.head_exchange import HeadExchange
from ardiff_engine.models.dit.paged_attention import attend


def run_blocks(
    specs: Sequence[BlockSpec],
    h: Tensor,
    modulation: Tensor,
    cells: CellBatch,
    positions: Tensor,
    frequencies: Tensor | None,
    exchange: HeadExchange | None = None,
) -> Tensor:
    """h [T, width] -> the output of the last block; see `NativeBlocks.run`. h may be overwritten.

    exchange: with other processes; h then holds this process's tokens, and pages its heads.
    """
    for layer, (spec, rows) in enumerate(zip(specs, modulation.unbind(0), strict=True)):
        h = _run(spec, h, rows, cells, layer, positions, frequencies, exchange)
    return h


def _run(
    spec: BlockSpec,
    h: Tensor,
    rows: Tensor,
    cells: CellBatch,
    layer: int,
    positions: Tensor,
    frequencies: Tensor | None,
    exchange: HeadExchange | None,
) -> Tensor:
    own, ids = spec.self_attention, cells.frame_ids
    ids = ids if exchange is None else exchange.own(ids)
    k_pages, v_pages = cells.k_pages[layer], cells.v_pages[layer]
    h, u = _normed(h, own.branch, rows, ids, spec.replaces_residual)
    qkv = torch.cat([project(u) for project in own.projections], dim=1)
    if exchange is None:
        q = _written(qkv, k_pages, v_pages, cells.slots, positions, own.heads, frequencies)
        seen = attend(q, cells, layer)
    else:
        # The norm may span all heads, so it comes before the exchange: K and V of our tokens go to pages of
        # their own first, those of our heads to the pool after it.
        k, v = qkv.new_empty(2, 1, own.heads.kv_heads, len(qkv), own.heads.dim)
        places = torch.arange(len(qkv), device=qkv.device)
        q = _written(qkv, k, v, places, exchange.own(positions), own.heads, frequencies)
        qkv = exchange.to_heads(q, k[0].transpose(0, 1), v[0].transpose(0, 1))
        share = Heads(k_pages.shape[1] * q.shape[1] // k.shape[1], k_pages.shape[1], own.heads.dim)
        q = _written(qkv, k_pages, v_pages, cells.slots, positions, share, None)
        seen = exchange.to_tokens(attend(q, cells, layer))
    h = _added(h, own.out(seen), own.branch, rows, ids)
    if spec.cross_attention is not None:
        cross, held = spec.cross_attention, needed(cells.conditions)
        h, u = _normed(h, cross.branch, rows, ids, spec.replaces_residual)
        q = head_norm(cross.projections[0](u), cross.heads)
        if exchange is not None:
            q = exchange.to_heads(q).unflatten(1, (-1, cross.heads.dim))
        of_parts = [ops.frame_attention(q, held.k[layer], held.v[layer], table) for table in held.tables]
        seen = sum(of_parts[1:], of_parts[0]).flatten(1)
        seen = seen if exchange is None else exchange.to_tokens(seen)
        h = _added(h, cross.out(seen), cross.branch, rows, ids)
    h, u = _normed(h, spec.mlp.branch, rows, ids, spec.replaces_residual)
    hidden = spec.mlp.up(u)
    if spec.mlp.activation == "silu":
        hidden = F.silu(hidden)
    else:
        hidden = F.gelu(hidden, approximate="tanh" if spec.mlp.activation == "gelu_tanh" else "none")
    return _added(h, spec.mlp.down(hidden), spec.mlp.branch, rows, ids)


def _written(
    qkv: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    positions: Tensor,
    heads: Heads,
    frequencies: Tensor | None,
) -> Tensor:
    """q [T, heads, dim], normed and rotated; k and v go to the pages."""
    return ops.norm_rope_write_(
        qkv,
        k_pages,
        v_pages,
        slots,
        positions,
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        norm=heads.norm,
        q_weight=heads.q_weight,
        q_bias=heads.q_bias,
        k_weight=heads.k_weight,
        k_bias=heads.k_bias,
        eps=heads.eps,
        frequencies=frequencies,
    )


def needed(conditions: ConditionPages | None) -> ConditionPages:
    if conditions is None:
        raise PageTableError("cells without pages of conditions, which blocks with cross-attention need.")
    return conditions


def head_norm(q: Tensor, heads: Heads) -> Tensor:
    """[T, heads dim] -> [T, heads, dim], normed as q is; computed in float32."""
    shape = (len(q), heads.heads, heads.dim)
    x = q.float() if heads.norm == "rms_full" else q.float().reshape(shape)
    if heads.norm == "layer":
        x = F.layer_norm(x, x.shape[-1:], eps=heads.eps)
    elif heads.norm != "none":
        x = F.rms_norm(x, x.shape[-1:], eps=heads.eps)
    x = x if heads.q_weight is None else x * heads.q_weight.float()
    x = x if heads.q_bias is None else x + heads.q_bias.float()
    return x.reshape(shape).to(q.dtype)


def _normed(h: Tensor, branch: Branch, rows: Tensor, ids: Tensor, replaces: bool) -> tuple[Tensor, Tensor]:
    """The residual and what the branch takes."""
    if branch.shift is not None and branch.scale is not None:
        shift, scale = rows[:, branch.shift], rows[:, branch.scale]
    else:
        shift = rows.new_zeros(1, h.shape[1]) if branch.bias is None else branch.bias[None]
        scale = rows.new_zeros(1, h.shape[1]) if branch.weight is None else branch.weight[None] - 1
        ids = torch.zeros_like(ids)
    if replaces:
        u, h = ops.modulate(h, shift, scale, ids, norm=branch.norm, eps=branch.eps, return_normed=True)
        return h, u
    return h, ops.modulate(h, shift, scale, ids, norm=branch.norm, eps=branch.eps)


def _added(h: Tensor, x: Tensor, branch: Branch, rows: Tensor, ids: Tensor) -> Tensor:
    if branch.gate is None:
        return h + x
    ops.gate_residual_(h, x, rows[:, branch.gate], ids)
    return h
