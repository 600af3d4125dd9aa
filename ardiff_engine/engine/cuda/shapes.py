# SPDX-License-Identifier: Apache-2.0
"""Batches of similar size, padded to one shape, so that one recorded tick serves them all.

Padding changes no result, because nobody can tell that it is there:

    what is added        what it does
    contexts, frames     no slot (-1: K/V are written nowhere), an empty view (attention gives 0), row 0 of
                         the model's tables; their latents may hold anything
    groups, entries      groups of the added frames, and empty ones; entries of 0 rows that nobody sees
    updates              cell 0 with weight 0: a row that nobody reads
    attention schedule   thread blocks without rows (ops.attention_work.roomy_words)

What is added stands behind the contexts, and behind the frames of each size, as token order demands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch

from ardiff_engine.engine.batch import Batch
from ardiff_engine.engine.layout import Span
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

    contexts, spans, groups, entries: with padding; a span has no updates or as many as cells. schedule:
        backend of frame_attention, then kernel and sizes of its schedule where it has one. planes: of the
        history.
    """

    contexts: int
    spans: tuple[Span, ...]
    branches: int
    groups: int
    entries: int
    noisy: bool
    biased: bool
    schedule: tuple[object, ...]
    planes: int = 0

    @property
    def tokens(self) -> int:
        """Of all frames."""
        return sum(span.tokens * span.cells for span in self.spans)

    @property
    def updates(self) -> int:
        return sum(span.updates for span in self.spans)

    @property
    def moved(self) -> int:
        """Tokens of all updates."""
        return sum(span.tokens * span.updates for span in self.spans)


@dataclass(frozen=True, slots=True)
class Room:
    """Where the parts of a batch lie among padding. counts: of each part; most: what it has room for."""

    counts: tuple[int, ...]
    most: tuple[int, ...]

    def fill(self, into: torch.Tensor, values: torch.Tensor) -> None:
        """Values of all parts, along the first dimension, to where they belong."""
        begin = at = 0
        for count, most in zip(self.counts, self.most, strict=True):
            into[at : at + count].copy_(values[begin : begin + count])
            begin, at = begin + count, at + most

    def padded(self, values: torch.Tensor, fill: int) -> torch.Tensor:
        into = torch.full((sum(self.most), *values.shape[1:]), fill, dtype=values.dtype)
        self.fill(into, values)
        return into

    def taken(self, values: torch.Tensor) -> torch.Tensor:
        """What is no padding, in memory of its own."""
        begins = accumulate(self.most, initial=0)
        return torch.cat([values[b : b + count] for b, count in zip(begins, self.counts, strict=False)])


@dataclass(frozen=True, slots=True, eq=False)
class PaddedLayout:
    """The tensors of a Layout, padded, in host memory. work: None where attention needs no schedule.

    rows: of all tokens, contexts first; tokens: of those of the frames; updates, moved: of the updates and of
    their tokens.
    """

    shape: TickShape
    rows: Room
    tokens: Room
    updates: Room
    moved: Room
    slots: torch.Tensor
    positions: torch.Tensor
    branch_cells: torch.Tensor
    table: FrameTable
    work: RecordedWork | None


def pad_layout(batch: Batch, spec: ModelSpec) -> PaddedLayout:
    """What a batch has in common with the next ones of its layout."""
    cells, table, spans = batch.cells, batch.cells.table, batch.spans
    contexts = cells.num_contexts
    moves = batch.branch_cells.numel() > 0
    rooms = [room_for(span.cells) for span in spans]
    most = tuple(
        Span(span.tokens, room, room if moves else 0) for span, room in zip(spans, rooms, strict=True)
    )
    units = Room((contexts, *(span.cells for span in spans)), (room_for(contexts), *rooms))
    sizes = (spec.context_tokens, *(span.tokens for span in spans))
    updates = Room(tuple(span.updates for span in spans), tuple(span.updates for span in most))
    entries = room_for_entries(table.pages.numel())
    # A context is a group of its own; those of frames follow, and none of them crosses a span.
    ends = np.searchsorted(table.group_ptr.numpy(), np.cumsum(units.counts))
    # What is added to a part is one group more.
    groups = room_for(table.num_groups + len(ends))

    def per_group(values: np.ndarray, added: Sequence[int]) -> np.ndarray:
        parts = np.split(values, ends[:-1])
        own = np.concatenate([np.append(part, more) for part, more in zip(parts, added, strict=True)])
        return np.concatenate([own, np.zeros(groups - len(own), own.dtype)])

    added = [room - count for count, room in zip(units.counts, units.most, strict=True)]
    padded = FrameTable(
        frame_ptr=_offsets(np.repeat(sizes, units.most)),
        group_ptr=_offsets(per_group(_sizes(table.group_ptr), added)),
        page_ptr=_offsets(
            per_group(_sizes(table.page_ptr), [0] * len(spans) + [entries - table.pages.numel()])
        ),
        pages=_padded(table.pages, entries),
        valid=_padded(table.valid, entries),
        seen=units.padded(table.seen, 0),
        bias=None if table.bias is None else _padded(table.bias, entries),
    )
    work, schedule = _schedule(padded, batch, spec)
    shape = TickShape(
        contexts=units.most[0],
        spans=most,
        branches=len(batch.branch_cells),
        groups=groups,
        entries=entries,
        noisy=batch.keys is not None,
        biased=table.bias is not None,
        schedule=schedule,
        planes=0 if batch.history is None else len(batch.history),
    )
    rows = _times(units, sizes)
    tokens = Room(rows.counts[1:], rows.most[1:])
    return PaddedLayout(
        shape=shape,
        rows=rows,
        tokens=tokens,
        updates=updates,
        moved=_times(updates, sizes[1:]),
        slots=rows.padded(cells.slots, -1),
        positions=tokens.padded(cells.positions, 0),
        branch_cells=updates.padded(batch.branch_cells.T, 0).T.contiguous(),
        table=padded,
        work=work,
    )


def with_pages_of(layout: PaddedLayout, batch: Batch) -> PaddedLayout:
    """A padded layout with the pages and positions of a batch that differs in nothing else from its own."""
    cells = batch.cells
    return replace(
        layout,
        slots=layout.rows.padded(cells.slots, -1),
        positions=layout.tokens.padded(cells.positions, 0),
        table=layout.table.with_pages(_padded(cells.table.pages, layout.shape.entries)),
    )


def _times(room: Room, sizes: Sequence[int]) -> Room:
    """Each part in units of so many."""
    counts = tuple(count * size for count, size in zip(room.counts, sizes, strict=True))
    return Room(counts, tuple(most * size for most, size in zip(room.most, sizes, strict=True)))


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


def _padded(values: torch.Tensor, size: int) -> torch.Tensor:
    """[entries], filled up with zeros."""
    return Room((len(values),), (size,)).padded(values, 0)


def _sizes(offsets: torch.Tensor) -> np.ndarray:
    return np.diff(offsets.numpy())


def _offsets(sizes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
