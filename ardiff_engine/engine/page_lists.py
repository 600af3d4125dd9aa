# SPDX-License-Identifier: Apache-2.0
"""The views of a pass: which pages each of its query frames sees, as one FrameTable.

A cell sees its context and what its view shows. Cells of a sequence whose views start alike form one group:
each sees a prefix of the group's list. Views overlap, so the pages of a sequence are listed once, its context
and then the copies of frames that any view shows, and every view is gathered from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, compress
from typing import NamedTuple

import numpy as np
import torch

from ardiff_engine.engine.feed import Roster
from ardiff_engine.memory.view import View
from ardiff_engine.models.spec import ModelSpec, Size
from ardiff_engine.ops.frame_table import FrameTable


class SequenceViews(NamedTuple):
    """Of one sequence, in places of its list of shown frames, so that windows that slide stay equal.

    num_shown: length of that list. own: of each cell, the place of its own frame. counts: runs in its view;
    begins, lengths, biases: of all runs, cell by cell (no biases: all are 0).
    feeds_context: whether the context is fed as well.
    layers: where layers see differently, their different views of the same list; of_layer: which of them each
        one has.
    """

    num_shown: int
    own: tuple[int, ...]
    counts: tuple[int, ...]
    begins: tuple[int, ...]
    lengths: tuple[int, ...]
    biases: tuple[float, ...]
    feeds_context: bool
    layers: tuple[SequenceViews, ...] = ()
    of_layer: tuple[int, ...] = ()

    def of(self, cells: tuple[bool, ...]) -> SequenceViews:
        """Those of some cells, without the context, in the same list."""
        runs = list(
            chain.from_iterable([[own] * count for own, count in zip(cells, self.counts, strict=True)])
        )
        return SequenceViews(
            num_shown=self.num_shown,
            own=tuple(compress(self.own, cells)),
            counts=tuple(compress(self.counts, cells)),
            begins=tuple(compress(self.begins, runs)),
            lengths=tuple(compress(self.lengths, runs)),
            biases=tuple(compress(self.biases, runs)),
            feeds_context=False,
            layers=tuple([views.of(cells) for views in self.layers]),
            of_layer=self.of_layer,
        )


class FedSequence(NamedTuple):
    """What a branch feeds. updates, levels, tracks: of each cell. first: level, track and update of the cell
    that a joint condition goes by."""

    views: SequenceViews
    updates: tuple[bool, ...]
    levels: tuple[int, ...]
    tracks: tuple[int, ...]
    first: tuple[int, int, bool]

    def moving(self) -> FedSequence:
        """Without context, and without cells that the solver does not move."""
        moving = self.updates
        levels, tracks = (tuple(compress(own, moving)) for own in (self.levels, self.tracks))
        return FedSequence(self.views.of(moving), (True,) * sum(moving), levels, tracks, self.first)


class Part(NamedTuple):
    """The shape of one stream's part of a pass: what its part of a layout depends on, but for pages, frame
    numbers, noise keys and weights.

    size: of the frames, as in Request. once: as in Roster. sequences: the different ones; branches: which of
    them each branch is. *_offsets: of each track."""

    size: Size | None
    once: bool
    sequences: tuple[FedSequence, ...]
    branches: tuple[int, ...]
    table_base: int
    timesteps: int
    table_offsets: tuple[int, ...]
    coefficient_offsets: tuple[int, ...]

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


def views_of(roster: Roster) -> tuple[list[tuple[int, int]], SequenceViews]:
    """The (frame, copy) that any cell sees, in order of copy and frame, and who sees which of them."""
    distinct = dict.fromkeys(roster.views)
    runs = sorted({(run.copy, run.first, run.stop) for view in distinct for run in view})
    shown: list[tuple[int, int]] = []
    # Frame - offset is its place, from the first frame of each stretch on: (copy, first, stop, offset).
    stretches: list[tuple[int, int, int, int]] = []
    for copy, first, stop in runs:
        begin, offset = first, first - len(shown)
        if stretches and stretches[-1][0] == copy and first <= stretches[-1][2]:
            _, begin, end, offset = stretches.pop()
            first, stop = end, max(end, stop)
        shown += [(frame, copy) for frame in range(first, stop)]
        stretches.append((copy, begin, stop, offset))

    # One number where there is one stretch: it is the same for all frames.
    offsets: int | dict[tuple[int, int], int]
    if len(stretches) == 1:
        offsets = offset = stretches[0][3]
        own = [frame - offset for frame in roster.frames]
    else:
        offsets = {
            (own_copy, frame): offset
            for own_copy, begin, stop, offset in stretches
            for frame in range(begin, stop)
        }
        own = [f - offsets[copy, f] for f, copy in zip(roster.frames, roster.copies, strict=True)]
    by_layer = list(zip(*roster.layers, strict=True))
    different = list(dict.fromkeys(by_layer))

    def listed(views: tuple[View, ...], layers: tuple[SequenceViews, ...] = ()) -> SequenceViews:
        if isinstance(offsets, int):
            begins = [run.first - offsets for view in views for run in view]
        else:
            begins = [run.first - offsets[run.copy, run.first] for view in views for run in view]
        biased = any([run.bias for view in dict.fromkeys(views) for run in view])
        return SequenceViews(
            num_shown=len(shown),
            own=tuple(own),
            counts=tuple(map(len, views)),
            begins=tuple(begins),
            lengths=tuple([run.stop - run.first for view in views for run in view]),
            biases=tuple([run.bias for view in views for run in view]) if biased else (),
            feeds_context=roster.feeds_context,
            layers=layers,
            of_layer=tuple(map(different.index, by_layer)) if layers else (),
        )

    return shown, listed(roster.views, tuple(map(listed, different)))


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
