# SPDX-License-Identifier: Apache-2.0
"""Guidance over several processes, each with a share of the branches.

With classifier-free guidance a pass computes every frame twice, once for each branch, and the two meet in the
solver alone. So process r of R computes the cells of branches r, r + R, ... of all streams, and the outputs
are collected: one all-gather of the network's outputs a pass. A stream without guidance has one branch, and
one process computes it.

All processes build the same engine and make the same calls in the same order, as with `UlyssesWan`, which
may be the model of each: a grid of heads by branches. Every process has pages for all branches, and fills
its own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ardiff_engine.errors import ConfigError
from ardiff_engine.models.cell_batch import CellBatch
from ardiff_engine.models.dit.head_exchange import gathered
from ardiff_engine.models.protocol import Tables, VideoModel
from ardiff_engine.models.wrapped import Wrapped
from ardiff_engine.ops.frame_table import FrameTable


class BranchShares(Wrapped[VideoModel]):
    """What this process computes of a model. In float32 on the CPU the result has the bits of `model` alone.

    Args:
        model: the same in every process; its conditions are cross conditions, or none.
        group: the processes; NCCL for GPUs, gloo for CPUs.

    Raises:
        ConfigError: a model whose condition is part of the sequence. From a submit: branches that read the
            K/V of another one (`Branch.writes`).
    """

    def __init__(self, model: VideoModel, group: dist.ProcessGroup) -> None:
        if model.spec.condition.kind == "joint":
            raise ConfigError("BranchShares: got a model with joint conditions, expected cross ones or none.")
        # Collectives are in no CUDA graph.
        super().__init__(model, replace(model.spec, reads_back=True, branches_apart=True))
        self._group = group

    @torch.no_grad()
    def __call__(self, x: Tensor, cells: CellBatch, tables: Tables, condition: Tensor | None) -> Tensor:
        if cells.branches is None:
            raise ConfigError("BranchShares: cells without CellBatch.branches, which an engine sets.")
        size, rank = self._group.size(), self._group.rank()
        owners = cells.branches % size
        rows = [torch.from_numpy(np.flatnonzero(owners == r)).to(x.device) for r in range(size)]
        ours = x[rows[rank]]
        if len(ours):
            ours = self.model(ours, _share(cells, owners == rank, rows[rank]), tables, condition)
        found = x.new_empty(len(x), ours.shape[1])
        for part, places in zip(gathered(ours, list(map(len, rows)), self._group), rows, strict=True):
            found[places] = part
        return found


def _share(cells: CellBatch, ours: np.ndarray, rows: Tensor) -> CellBatch:
    """Of the tokens that are ours: bool [X], and as rows."""
    tables = {id(table): _frames(table, ours) for table in (cells.table, *cells.layers)}
    held = cells.conditions
    return replace(
        cells,
        slots=cells.slots[rows],
        positions=cells.positions[rows],
        frame_ids=cells.frame_ids[rows],
        table=tables[id(cells.table)],
        layers=tuple([tables[id(table)] for table in cells.layers]),
        wanted=None if cells.wanted is None else cells.wanted[rows],
        conditions=held and replace(held, tables=tuple([_frames(table, ours) for table in held.tables])),
        inputs={name: values[rows] for name, values in cells.inputs.items()},
        branches=None if cells.branches is None else cells.branches[ours],
    )


def _frames(table: FrameTable, tokens: np.ndarray) -> FrameTable:
    """The table of the query frames whose tokens are among these. A frame is of one branch."""
    offsets = table.frame_ptr, table.group_ptr, table.page_ptr
    frame_ptr, group_ptr, page_ptr = (tensor.cpu().numpy() for tensor in offsets)
    pages, valid, seen = (tensor.cpu().numpy() for tensor in (table.pages, table.valid, table.seen))
    kept = tokens[frame_ptr[:-1]]
    groups = np.repeat(np.arange(len(group_ptr) - 1), np.diff(group_ptr))
    frames, entries = np.bincount(groups[kept], minlength=len(group_ptr) - 1), np.diff(page_ptr)
    listed = np.repeat(frames > 0, entries)
    bias = None if table.bias is None else table.bias.cpu()[torch.from_numpy(listed)]
    own = FrameTable.from_flat(
        np.diff(frame_ptr)[kept],
        frames[frames > 0],
        entries[frames > 0],
        pages[listed],
        valid[listed],
        seen[kept],
        bias,
    )
    return own.to(table.device)
