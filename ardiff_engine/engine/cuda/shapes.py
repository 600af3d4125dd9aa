# SPDX-License-Identifier: Apache-2.0
"""Batches of similar size, padded to one shape, so that one recorded tick serves them all.

Padding changes no result, because nobody can tell that it is there:

    what is added        what it does
    contexts, frames     no slot (-1: K/V are written nowhere), an empty view (attention gives 0), row 0 of
                         the model's tables; their latents may hold anything
    groups, entries      groups of the added frames, and empty ones; entries of 0 rows that nobody sees
    updates              cell 0 with weight 0: a row that nobody reads
    attention schedule   thread blocks without rows (ops.attention_work.roomy_words)

Added contexts stand behind the real ones and added frames behind the real ones, as token order demands.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ardiff_engine.engine.batch import Batch
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.ops.attention_work import RecordedWork
from ardiff_engine.ops.backend import choose
from ardiff_engine.ops.frame_attention_cuda import recorded_work
from ardiff_engine.ops.frame_table import FrameTable


def room_for(count: int) -> int:
    """`count` up to 8; above, rounded up to one of four sizes per octave: at most a fifth is padding."""
    step = 1
    while 8 * step < count:
        step *= 2
    return -(-count // step) * step


def room_for_entries(count: int) -> int:
    """Entries that nobody sees cost memory only: powers of two, from 16."""
    return max(16, 1 << (count - 1).bit_length())


@dataclass(frozen=True, slots=True)
class TickShape:
    """Everything that a recorded tick fixes. Batches of equal shape can take each other's place.

    contexts, cells, updates, groups, entries: with padding; updates are 0 or as many as cells. schedule:
        backend of frame_attention, then kernel and sizes of its schedule where it has one. planes: of the
        history.
    """

    contexts: int
    cells: int
    branches: int
    updates: int
    groups: int
    entries: int
    noisy: bool
    biased: bool
    schedule: tuple[object, ...]
    planes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class PaddedLayout:
    """The tensors of a Layout, padded, in host memory. work: None where attention needs no schedule."""

    shape: TickShape
    slots: torch.Tensor
    positions: torch.Tensor
    branch_cells: torch.Tensor
    table: FrameTable
    work: RecordedWork | None


def pad_layout(batch: Batch, spec: ModelSpec) -> PaddedLayout:
    """What a batch has in common with the next ones of its layout."""
    cells, table = batch.cells, batch.cells.table
    contexts, frames = cells.num_contexts, batch.x.shape[0]
    most_contexts, most_frames = room_for(contexts), room_for(frames)
    branches, updates = batch.branch_cells.shape
    most_updates = most_frames if updates else 0
    groups, entries = room_for(table.num_groups + 2), room_for_entries(table.pages.numel())

    def per_unit(values: np.ndarray, fill: int) -> np.ndarray:
        """Of contexts, then frames."""
        return np.concatenate(
            [
                values[:contexts],
                np.full(most_contexts - contexts, fill, values.dtype),
                values[contexts:],
                np.full(most_frames - frames, fill, values.dtype),
            ]
        )

    def per_group(values: np.ndarray, of_contexts: int, of_frames: int) -> np.ndarray:
        """A context is a group of its own; groups of frames follow."""
        own = np.concatenate([values[:contexts], [of_contexts], values[contexts:], [of_frames]])
        return np.concatenate([own, np.zeros(groups - len(own), own.dtype)])

    tokens = np.repeat([spec.context_tokens, spec.tokens_per_frame], [most_contexts, most_frames])
    padded = FrameTable(
        frame_ptr=_offsets(tokens),
        group_ptr=_offsets(
            per_group(_sizes(table.group_ptr), most_contexts - contexts, most_frames - frames)
        ),
        page_ptr=_offsets(per_group(_sizes(table.page_ptr), 0, entries - table.pages.numel())),
        pages=_padded(table.pages, entries, 0),
        valid=_padded(table.valid, entries, 0),
        seen=torch.from_numpy(per_unit(table.seen.numpy(), 0)),
        bias=None if table.bias is None else _padded(table.bias, entries, 0),
    )
    work, schedule = _schedule(padded, batch, spec)
    return PaddedLayout(
        shape=TickShape(
            most_contexts,
            most_frames,
            branches,
            most_updates,
            groups,
            entries,
            batch.keys is not None,
            table.bias is not None,
            schedule,
            0 if batch.history is None else len(batch.history),
        ),
        slots=pad_tokens(cells.slots, -1, contexts, most_contexts, most_frames, spec),
        positions=_padded(cells.frame_positions, most_frames, 0),
        branch_cells=_padded(batch.branch_cells, most_updates, 0),
        table=padded,
        work=work,
    )


def with_pages_of(layout: PaddedLayout, batch: Batch, spec: ModelSpec) -> PaddedLayout:
    """A padded layout with the pages and positions of a batch that differs in nothing else from its own."""
    cells, shape = batch.cells, layout.shape
    return replace(
        layout,
        slots=pad_tokens(cells.slots, -1, cells.num_contexts, shape.contexts, shape.cells, spec),
        positions=_padded(cells.frame_positions, shape.cells, 0),
        table=layout.table.with_pages(_padded(cells.table.pages, shape.entries, 0)),
    )


def pad_tokens(
    values: torch.Tensor, fill: int, contexts: int, most_contexts: int, most_frames: int, spec: ModelSpec
) -> torch.Tensor:
    """[T] -> the same for padded contexts and frames."""
    own, most = contexts * spec.context_tokens, most_contexts * spec.context_tokens
    padded = torch.full((most + most_frames * spec.tokens_per_frame,), fill, dtype=values.dtype)
    padded[:own] = values[:own]
    padded[most : most + len(values) - own] = values[own:]
    return padded


def _schedule(
    table: FrameTable, batch: Batch, spec: ModelSpec
) -> tuple[RecordedWork | None, tuple[object, ...]]:
    k_pages, v_pages = batch.cells.k_pages[0], batch.cells.v_pages[0]
    q = k_pages.new_empty(0, spec.heads, spec.head_dim)
    backend = choose("frame_attention", q, k_pages, v_pages).name
    if backend != "cuda":
        return None, (backend,)
    work = recorded_work(table.offsets, q, k_pages, v_pages)
    return work, (backend, work.block_rows, *work.sizes)


def _padded(values: torch.Tensor, size: int, fill: int) -> torch.Tensor:
    """The last dimension, filled up to `size`."""
    padded = torch.full((*values.shape[:-1], size), fill, dtype=values.dtype)
    padded[..., : values.shape[-1]] = values
    return padded


def _sizes(offsets: torch.Tensor) -> np.ndarray:
    return np.diff(offsets.numpy())


def _offsets(sizes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
