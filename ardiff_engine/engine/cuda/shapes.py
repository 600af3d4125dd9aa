# SPDX-License-Identifier: Apache-2.0
"""Batches of similar size, padded to one shape, so that one recorded pass serves them all.

Padding changes no result, because nobody can tell that it is there:

    what is added        what it does
    contexts, frames     no slot (-1: K/V are written nowhere), an empty view (attention gives 0), row 0 of
                         the model's tables; their latents may hold anything
    groups, entries      groups of the added frames, and empty ones; entries of 0 rows that nobody sees
    updates              cell 0 with weight 0, row 0 of the coefficients: a row that nobody reads
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
from ardiff_engine.engine.page_lists import Span
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
class TableShape:
    """Of a table with padding. schedule: backend of frame_attention, then kernel and sizes of its schedule
    where it has one."""

    groups: int
    entries: int
    biased: bool
    schedule: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class PassShape:
    """Everything that a recorded pass fixes. Batches of equal shape can take each other's place.

    contexts, spans: with padding; a span has no updates or as many as cells. table, conditions: of the frames
        and of cross conditions. planes: of the history.
    """

    contexts: int
    spans: tuple[Span, ...]
    branches: int
    table: TableShape
    conditions: tuple[TableShape, ...]
    noisy: bool
    planes: int

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
class PaddedTable:
    """work: None where attention needs no schedule."""

    shape: TableShape
    table: FrameTable
    work: RecordedWork | None

    def with_pages(self, pages: torch.Tensor) -> PaddedTable:
        return replace(self, table=self.table.with_pages(_padded(pages, self.shape.entries)))


@dataclass(frozen=True, slots=True, eq=False)
class PaddedLayout:
    """The tensors of a Layout, padded, in host memory.

    rows: of all tokens, contexts first; tokens: of those of the frames; updates, moved: of the updates and of
    their tokens.
    """

    shape: PassShape
    rows: Room
    tokens: Room
    updates: Room
    moved: Room
    slots: torch.Tensor
    positions: torch.Tensor
    branch_cells: torch.Tensor
    table: PaddedTable
    conditions: tuple[PaddedTable, ...]


def pad_layout(batch: Batch, spec: ModelSpec) -> PaddedLayout:
    """What a batch has in common with the next ones of its layout."""
    cells, spans = batch.cells, batch.spans
    contexts = cells.num_contexts
    moves = batch.branch_cells.numel() > 0
    rooms = [room_for(span.cells) for span in spans]
    most = tuple(
        Span(span.tokens, room, room if moves else 0) for span, room in zip(spans, rooms, strict=True)
    )
    units = Room((contexts, *(span.cells for span in spans)), (room_for(contexts), *rooms))
    sizes = (spec.context_tokens, *(span.tokens for span in spans))
    updates = Room(tuple(span.updates for span in spans), tuple(span.updates for span in most))
    table = _pad_table(cells.table, units, sizes, batch, spec)
    conditions = [_pad_table(own, units, sizes, batch, spec) for own in condition_tables(batch)]
    shape = PassShape(
        contexts=units.most[0],
        spans=most,
        branches=len(batch.branch_cells),
        table=table.shape,
        conditions=tuple([own.shape for own in conditions]),
        noisy=batch.keys is not None,
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
        table=table,
        conditions=tuple(conditions),
    )


def condition_tables(batch: Batch) -> tuple[FrameTable, ...]:
    """Of each part of the cross conditions; none without them."""
    return () if batch.cells.conditions is None else batch.cells.conditions.tables


def with_pages_of(layout: PaddedLayout, batch: Batch) -> PaddedLayout:
    """A padded layout with the pages and positions of a batch that differs in nothing else from its own."""
    cells, pairs = batch.cells, zip(layout.conditions, condition_tables(batch), strict=True)
    return replace(
        layout,
        slots=layout.rows.padded(cells.slots, -1),
        positions=layout.tokens.padded(cells.positions, 0),
        table=layout.table.with_pages(cells.table.pages),
        conditions=tuple([padded.with_pages(own.pages) for padded, own in pairs]),
    )


def _pad_table(
    table: FrameTable, units: Room, sizes: Sequence[int], batch: Batch, spec: ModelSpec
) -> PaddedTable:
    """units: contexts and frames of each span; sizes: tokens of one of each."""
    entries = room_for_entries(table.pages.numel())
    # A context is a group of its own; those of frames follow, and none of them crosses a span.
    ends = np.searchsorted(table.group_ptr.numpy(), np.cumsum(units.counts))
    # What is added to a part is one group more.
    groups = room_for(table.num_groups + len(ends))

    def per_group(values: np.ndarray, added: Sequence[int]) -> np.ndarray:
        parts = np.split(values, ends[:-1])
        own = np.concatenate([np.append(part, more) for part, more in zip(parts, added, strict=True)])
        return np.concatenate([own, np.zeros(groups - len(own), own.dtype)])

    more_units = [room - count for count, room in zip(units.counts, units.most, strict=True)]
    more_entries = [0] * (len(ends) - 1) + [entries - table.pages.numel()]
    padded = FrameTable(
        frame_ptr=_offsets(np.repeat(sizes, units.most)),
        group_ptr=_offsets(per_group(_sizes(table.group_ptr), more_units)),
        page_ptr=_offsets(per_group(_sizes(table.page_ptr), more_entries)),
        pages=_padded(table.pages, entries),
        valid=_padded(table.valid, entries),
        seen=units.padded(table.seen, 0),
        bias=None if table.bias is None else _padded(table.bias, entries),
    )
    work, schedule = _schedule(padded, batch, spec)
    return PaddedTable(TableShape(groups, entries, table.bias is not None, schedule), padded, work)


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
