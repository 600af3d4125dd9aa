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
from ardiff_engine.models.dit.paged_attention import attend


def run_blocks(
    specs: Sequence[BlockSpec],
    h: Tensor,
    modulation: Tensor,
    cells: CellBatch,
    positions: Tensor,
    frequencies: Tensor | None,
) -> Tensor:
    """h [T, width] -> the output of the last block; see `NativeBlocks.run`. h may be overwritten."""
    for layer, (spec, rows) in enumerate(zip(specs, modulation.unbind(0), strict=True)):
        h = _run(spec, h, rows, cells, layer, positions, frequencies)
    return h


def _run(
    spec: BlockSpec,
    h: Tensor,
    rows: Tensor,
    cells: CellBatch,
    layer: int,
    positions: Tensor,
    frequencies: Tensor | None,
) -> Tensor:
    own, heads, ids = spec.self_attention, spec.self_attention.heads, cells.frame_ids
    k_pages, v_pages = cells.k_pages[layer], cells.v_pages[layer]
    h, u = _normed(h, own.branch, rows, ids, spec.replaces_residual)
    q = ops.norm_rope_write_(
        torch.cat([project(u) for project in own.projections], dim=1),
        k_pages,
        v_pages,
        cells.slots,
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
    seen = attend(q, cells, layer)
    h = _added(h, own.out(seen), own.branch, rows, ids)
    if spec.cross_attention is not None:
        cross, held = spec.cross_attention, needed(cells.conditions)
        h, u = _normed(h, cross.branch, rows, ids, spec.replaces_residual)
        q = head_norm(cross.projections[0](u), cross.heads)
        of_parts = [ops.frame_attention(q, held.k[layer], held.v[layer], table) for table in held.tables]
        seen = sum(of_parts[1:], of_parts[0]).flatten(1)
        h = _added(h, cross.out(seen), cross.branch, rows, ids)
    h, u = _normed(h, spec.mlp.branch, rows, ids, spec.replaces_residual)
    hidden = spec.mlp.up(u)
    if spec.mlp.activation == "silu":
        hidden = F.silu(hidden)
    else:
        hidden = F.gelu(hidden, approximate="tanh" if spec.mlp.activation == "gelu_tanh" else "none")
    return _added(h, spec.mlp.down(hidden), spec.mlp.branch, rows, ids)


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
