# SPDX-License-Identifier: Apache-2.0
"""Attention of one layer over the page pool: write K and V of every token, then attend through the views."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ardiff_engine import ops
from ardiff_engine.models.cell_batch import CellBatch

QK_NORM_EPS = 1e-5
QKWeights = tuple[torch.Tensor | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class PagedAttention:
    """positions: int64 [T], context first; frequencies: float64 [head_dim / 2], None: no RoPE."""

    batch: CellBatch
    layer: int
    heads: int
    positions: torch.Tensor
    frequencies: torch.Tensor | None

    @property
    def k_pages(self) -> torch.Tensor:
        """[pages, heads, page_rows, head_dim]"""
        return self.batch.k_pages[self.layer]

    @property
    def v_pages(self) -> torch.Tensor:
        """[pages, heads, page_rows, head_dim]"""
        return self.batch.v_pages[self.layer]

    def __call__(self, qkv: torch.Tensor, qk_norm: QKWeights) -> torch.Tensor:
        """qkv [T, 3 D] -> [T, D]; qk_norm: q weight, q bias, k weight, k bias, or None four times."""
        k_pages, v_pages = self.k_pages, self.v_pages
        q_weight, q_bias, k_weight, k_bias = qk_norm
        q = ops.norm_rope_write_(
            qkv,
            k_pages,
            v_pages,
            self.batch.slots,
            self.positions,
            heads=self.heads,
            norm="none" if q_weight is None else "layer",
            q_weight=q_weight,
            q_bias=q_bias,
            k_weight=k_weight,
            k_bias=k_bias,
            eps=QK_NORM_EPS,
            frequencies=self.frequencies,
        )
        return attend(q, self.batch, self.layer)


def attend(q: torch.Tensor, cells: CellBatch, layer: int) -> torch.Tensor:
    """q [T, heads, dim] over the pages of a layer -> [T, heads dim]: a call for neighbouring heads that see
    alike."""
    k, v = cells.k_pages[layer], cells.v_pages[layer]
    share = q.shape[1] // k.shape[1]
    seen = [
        ops.frame_attention(
            q[:, own.start * share : own.stop * share],
            k[:, own.start : own.stop],
            v[:, own.start : own.stop],
            table,
        )
        for own, table in cells.tables_of(layer)
    ]
    return (seen[0] if len(seen) == 1 else torch.cat(seen, dim=1)).flatten(1)
