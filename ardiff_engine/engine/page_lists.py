# SPDX-License-Identifier: Apache-2.0
"""The views of a pass: which pages each of its query frames sees, as one FrameTable.

A cell sees its context and what its view shows. Cells of a sequence whose views start alike form one group:
each sees a prefix of the group's list. Views overlap, so the pages of a sequence are listed once, its context
and then the copies of frames that any view shows, and every view is gathered from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch

from ardiff_engine.engine.feed import FedSequence, SequenceViews
from ardiff_engine.models.spec import ModelSpec, Size
from ardiff_engine.ops.frame_table import FrameTable


class Part(NamedTuple):
    """The shape of one stream's part of a pass: what its part of a layout depends on, but for pages, frame
    numbers, noise keys and weights.

    size: of the frames, as in Request. once: as in Roster. sequences: the different ones; branches: which of
    them each branch is. timesteps, *_offsets: as in ScheduleRows. conditions: of cross ones of each branch,
    rows of their parts that are stored."""

    size: Size | None
    once: bool
    sequences: tuple[FedSequence, ...]
    branches: tuple[int, ...]
    timesteps: int
    table_offsets: tuple[int, ...]
    coefficient_offsets: tuple[int, ...]
    conditions: tuple[tuple[int, ...], ...]

    @property
    def cells(self) -> int:
        return sum(len(self.sequences[branch].levels) for branch in self.branches)

    @property
    def updates(self) -> int:
        """Every branch feeds all frames that the solver moves."""
        return sum(self.sequences[0].updates)

    @property
    def rest(self) -> Part:
        """That of the passes after the first one."""
        if not self.once:
            return self
        return self._replace(once=False, sequences=tuple([own.moving() for own in self.sequences]))


class Place(NamedTuple):
    """A stream's part of a pass, and where it lies. pages: of all its sequences, as their lists name them;
    conditions: of cross ones, of each sequence with cells."""

    part: Part
    pages: tuple[int, ...]
    conditions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring cells of one pass whose frames have as many tokens, and how many of them are updates."""

    tokens: int
    cells: int
    updates: int


def spans_of(tokens: list[int], parts: tuple[Part, ...]) -> tuple[Span, ...]:
    """tokens: of the frames of each part."""
    spans = []
    for count, group in groupby(zip(tokens, parts, strict=True), key=itemgetter(0)):
        own = [part for _, part in group]
        cells, updates = sum(part.cells for part in own), sum(part.updates for part in own)
        spans.append(Span(count, cells, updates))
    return tuple(spans)


@dataclass(frozen=True, slots=True, eq=False)
class PageLists:
    """The views of all sequences. table: with places in the joined lists of pages instead of pages.
    fed_places, fed_rows: of each page of each query frame, in token order: its place, and its rows that
    exist. num_contexts: query frames that are contexts."""

    table: FrameTable
    listed: np.ndarray
    fed_places: np.ndarray
    fed_rows: np.ndarray
    num_contexts: int


def page_lists(
    sequences: list[SequenceViews], spec: ModelSpec, context_valid: list[int], frame_valid: list[list[int]]
) -> PageLists:
    """Groups in token order: contexts, then cells. *_valid: rows that exist in each page of a context, and of
    a frame of each sequence."""
    context, per_frame = len(context_valid), np.array([len(rows) for rows in frame_valid])
    num_shown = np.array([views.num_shown for views in sequences])
    heads = np.cumsum(context + num_shown * per_frame) - (context + num_shown * per_frame)

    # Of each cell: its sequence, and its runs [cells, R], filled up with empty ones.
    owners = np.repeat(np.arange(len(sequences)), [len(views.own) for views in sequences])
    counts, begins, lengths = (_joined(sequences, name) for name in ("counts", "begins", "lengths"))
    cells, most = len(counts), int(counts.max())
    filled = np.arange(most) < counts[:, None]
    first_places, pages = (heads + context)[owners], per_frame[owners]
    starts, stretch = np.zeros((2, cells, most), np.int64)
    starts[filled], stretch[filled] = begins, lengths
    starts = np.where(filled, first_places[:, None] + starts * pages[:, None], 0)
    biases = np.zeros((cells, most), np.float32)
    if any(views.biases for views in sequences):
        given = [views.biases or (0.0,) * len(views.begins) for views in sequences]
        biases[filled] = np.concatenate([np.array(values, np.float32) for values in given])

    # A cell joins the group of the one before it if that sees a prefix of what it sees: all runs are the same
    # but for the last one, which is no shorter.
    last = np.arange(most) == counts[:, None] - 1
    alike = (owners[1:] == owners[:-1]) & (counts[1:] == counts[:-1])
    alike &= ((starts[1:] == starts[:-1]) & (biases[1:] == biases[:-1])).all(axis=1)
    alike &= np.where(last[1:], stretch[1:] >= stretch[:-1], stretch[1:] == stretch[:-1]).all(axis=1)
    groups = np.flatnonzero(np.append(True, ~alike))
    members = np.diff(groups, append=cells)
    lasts = groups + members - 1
    seen = context + stretch.sum(axis=1) * pages

    # Each group's list is the context and the runs of its last cell.
    run_begins = np.concatenate([heads[owners[groups]][:, None], starts[lasts]], axis=1)
    run_lengths = np.concatenate(
        [np.full((len(groups), 1), context), stretch[lasts] * pages[lasts, None]], axis=1
    )
    run_biases = np.concatenate([np.zeros((len(groups), 1), np.float32), biases[lasts]], axis=1)
    tokens = np.array([sum(rows) for rows in frame_valid])
    query_tokens = tokens[owners]
    fed = np.flatnonzero([views.feeds_context for views in sequences])
    if len(fed):
        # Where a context sees more than itself, all frames are fed (no K/V can be kept) and shown.
        own = np.full(len(fed), context)
        if spec.condition_sees_frames:
            own += (num_shown * per_frame)[fed]
        none = np.zeros((len(fed), most), np.int64)
        run_begins = np.concatenate([np.concatenate([heads[fed][:, None], none], axis=1), run_begins])
        run_lengths = np.concatenate([np.concatenate([own[:, None], none], axis=1), run_lengths])
        run_biases = np.concatenate([np.zeros((len(fed), most + 1), np.float32), run_biases])
        query_tokens = np.concatenate([np.full(len(fed), spec.context_tokens), query_tokens])
        members = np.concatenate([np.ones_like(fed), members])
        seen = np.concatenate([own, seen])

    valid = np.array(
        [
            rows
            for views, frame in zip(sequences, frame_valid, strict=True)
            for rows in context_valid + frame * views.num_shown
        ],
        np.int32,
    )
    own_places = first_places + _joined(sequences, "own") * pages
    fed_places = np.concatenate(
        [(heads[fed][:, None] + np.arange(context)).reshape(-1), ranges(own_places, pages)]
    )
    listed = ranges(run_begins.reshape(-1), run_lengths.reshape(-1))
    bias = np.repeat(run_biases.reshape(-1), run_lengths.reshape(-1)) if biases.any() else None
    return PageLists(
        table=FrameTable.from_flat(
            query_tokens,
            members,
            run_lengths.sum(axis=1),
            listed,
            valid[listed],
            seen,
            None if bias is None else torch.from_numpy(bias),
        ),
        listed=listed,
        fed_places=fed_places,
        fed_rows=valid[fed_places],
        num_contexts=len(fed),
    )


def by_layer(sequences: list[SequenceViews]) -> tuple[list[list[SequenceViews]], tuple[int, ...]]:
    """The different views that layers have of the same lists, and which of them each one has: empty where all
    have one."""
    depth = max(len(views.of_layer) for views in sequences)
    # Of each layer, or of each head of each layer: who has fewer has the same for all heads of a layer.
    columns = [
        tuple([own[number * len(own) // depth] if own else -1 for own in (v.of_layer for v in sequences)])
        for number in range(depth)
    ]
    different = list(dict.fromkeys(columns))
    seen = [
        [
            views if number < 0 else views.layers[number]
            for views, number in zip(sequences, column, strict=True)
        ]
        for column in different
    ]
    return seen or [sequences], tuple(map(different.index, columns))


def _joined(sequences: list[SequenceViews], name: str) -> np.ndarray:
    return np.array([value for views in sequences for value in getattr(views, name)], np.int64)


def ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """begins[0], begins[0] + 1, ... (lengths[0] of them), begins[1], ..."""
    ends = np.cumsum(lengths)
    return np.repeat(begins - (ends - lengths), lengths) + np.arange(ends[-1])


def valid_rows(tokens: int, page_rows: int) -> list[int]:
    full, rest = divmod(tokens, page_rows)
    return [page_rows] * full + ([rest] if rest else [])
