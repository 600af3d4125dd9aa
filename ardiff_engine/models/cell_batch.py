# SPDX-License-Identifier: Apache-2.0
"""What a pass needs besides the latents: where K/V go, who sees what, whose modulation is which row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from ardiff_engine.ops.frame_table import FrameTable


@dataclass(frozen=True, slots=True, eq=False)
class ConditionPages:
    """K and V of cross conditions, [layers, pages, kv_heads, page_rows, dim], in pages that no frame has.

    tables: which of them each token sees, in token order: one table for each part of a condition
        (`ConditionSpec.parts`).
    """

    k: torch.Tensor
    v: torch.Tensor
    tables: tuple[FrameTable, ...]


@dataclass(frozen=True, slots=True)
class CellBatch:
    """Cells of any streams, flattened: first the tokens of `num_contexts` context units, then those of the
    frames, X in all. Frames may have different numbers of tokens.

    slots: int64 [T], row (page * page_rows + row) of the pool that receives each token's K/V.
    positions: int64 [X, 1 + axes], of each token of the frames: its frame's place in the sequence, in frames,
        then its own in the frame, along the axes of `ModelSpec.grid`.
    frame_ids: int32 [T], row of the modulation table for each token.
    table: views in token order; every query frame is one context unit or one frame.
    layers: the table of each layer, where they differ, or of each kv head of each layer; `table_of` and
        `tables_of` know.
    k_pages, v_pages: [layers, pages, heads, page_rows, head_dim], written and read in place.
    wanted: bool [T], tokens whose output is wanted; that of others, which only store K/V, may be anything.
        None: all of them.
    conditions: of networks with cross-attention.
    inputs: by name, of networks with `ModelSpec.frame_inputs`: float32 [X, width], for each token of the
        frames.
    branches: int64 [X], in host memory: the guidance branch of each token of the frames. None: not told.
    """

    num_contexts: int
    slots: torch.Tensor
    positions: torch.Tensor
    frame_ids: torch.Tensor
    table: FrameTable
    k_pages: torch.Tensor
    v_pages: torch.Tensor
    wanted: torch.Tensor | None = None
    conditions: ConditionPages | None = None
    layers: tuple[FrameTable, ...] = ()
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    branches: np.ndarray | None = None

    def table_of(self, layer: int) -> FrameTable:
        """The views of a layer all of whose heads see alike."""
        return self.layers[layer] if self.layers else self.table

    def tables_of(self, layer: int) -> list[tuple[range, FrameTable]]:
        """Neighbouring kv heads of a layer that see alike, and their views; in the order of heads."""
        heads = self.k_pages.shape[2]
        if not self.layers:
            return [(range(heads), self.table)]
        parts = len(self.layers) // len(self.k_pages)
        own = self.layers[layer * parts : (layer + 1) * parts]
        starts = [n for n in range(parts) if n == 0 or own[n] is not own[n - 1]]
        wide = heads // parts
        return [
            (range(a * wide, b * wide), own[a]) for a, b in zip(starts, [*starts[1:], parts], strict=True)
        ]
