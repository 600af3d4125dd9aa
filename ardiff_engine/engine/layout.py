# SPDX-License-Identifier: Apache-2.0
"""Where the cells of a pass lie and what they see: all that stays the same while only levels change.

Token order: the contexts that are fed, then the frames, sequence by sequence; a sequence is one guidance
branch of one stream. While a window slides, the shape of a pass comes back again and again, with other pages
and other frames. So shapes are kept, and laying out a pass whose shape is known only fills in these.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from ardiff_engine.engine.branch_rosters import source_of
from ardiff_engine.engine.feed import Feed, Roster
from ardiff_engine.engine.page_lists import (
    FedSequence,
    PageLists,
    Part,
    SequenceViews,
    by_layer,
    page_lists,
    ranges,
    valid_rows,
    views_of,
)
from ardiff_engine.engine.state import StreamState
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.ops.frame_table import FrameTable
from ardiff_engine.purposes import Purpose

Work = list[tuple[StreamState, Feed]]

SHAPES_KEPT = 32


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring cells of one pass whose frames have as many tokens, and how many of them are updates."""

    tokens: int
    cells: int
    updates: int


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """For the model and the solver, as in CellBatch and Batch: `slots`, `positions`, `table`, `layers`.
    conditions: the tables of cross conditions. ids: the pages of all sequences, as their lists name them.

    What follows the levels, for the first pass of each stream's roster, on the host: `coefficients` int64
    [U], `weight_rows` int64 [U] of `weights` [R, B] (guidance, of all streams), `keys` int64 [U, 5] of step
    noise (None if no solver draws any). With every pass of its stream each moves on by one.
    """

    shape: Shape
    ids: np.ndarray
    slots: torch.Tensor
    positions: torch.Tensor
    table: FrameTable
    layers: tuple[FrameTable, ...]
    conditions: tuple[FrameTable, ...]
    weights: np.ndarray
    weight_rows: np.ndarray
    coefficients: np.ndarray
    keys: np.ndarray | None


@dataclass(slots=True, eq=False)
class Shape:
    """What passes of the same parts have in common. For the model and the solver, as in CellBatch and Batch:
    `num_contexts`, `wanted`, `spans`, `branch_cells`.

    rows: int32 [T], of the model's tables, in the first pass of each stream's roster. With every pass of its
        stream a token's row moves on by `row_moves` [T]. token_owners [T], update_owners [U]: which stream of
        the pass that is. solver_rows, update_levels: [U].
    slot_places, slot_rows: [T] where in the joined lists of pages a token's page is, and its row there.
    lists: of views that differ; of_layer: which of them each layer has, if not all the first one.
    conditions: with any pages. cell_tokens: [N]; places: int64 [X, 1 + axes], the positions of all tokens but
        for their frames'.
    rest: of the pass after this one, once it was asked for. cells_again: [N] which of the cells it feeds.
    """

    parts: tuple[Part, ...]
    num_contexts: int
    lists: tuple[PageLists, ...]
    of_layer: tuple[int, ...]
    conditions: tuple[FrameTable, ...]
    wanted: torch.Tensor | None
    slot_places: np.ndarray
    slot_rows: np.ndarray
    cell_tokens: np.ndarray
    places: np.ndarray
    spans: tuple[Span, ...]
    branch_cells: torch.Tensor
    rows: np.ndarray
    row_moves: np.ndarray
    solver_rows: np.ndarray
    update_levels: np.ndarray
    token_owners: np.ndarray
    update_owners: np.ndarray
    cells_again: np.ndarray
    rest: Shape | None = None


class LayoutBuilder:
    """Lays passes out for one model and pool of pages, in host memory."""

    def __init__(self, model: VideoModel, page_rows: int) -> None:
        spec = model.spec
        self._model = model
        self._spec = spec
        self._page_rows = page_rows
        self._context_valid = valid_rows(spec.context_tokens, page_rows)
        self._crosses = spec.condition.kind == "cross"
        parts = spec.condition.parts or (spec.condition.tokens,)
        self._condition_valid = [valid_rows(rows, page_rows) for rows in parts]
        self._shapes: dict[tuple[Part, ...], Shape] = {}

    def build(self, work: Work) -> Layout:
        parts: list[Part] = []
        pages: list[int] = []
        conditions: list[list[int]] = [[] for _ in self._condition_valid]
        positions: list[int] = []
        for stream, feed in work:
            rosters, schedule = stream.rosters(feed), stream.schedule
            distinct = list(dict.fromkeys(rosters))
            found = [views_of(roster) for roster in distinct]
            branches = tuple(map(distinct.index, rosters))
            source = source_of(stream.branches)
            for branch, number in enumerate(branches):
                pages += stream.pages.context[branch]
                pages += stream.pages.shown(branch, source, found[number][0])
                positions += distinct[number].positions
                if self._crosses and distinct[number].frames:
                    held = iter(stream.pages.conditions[branch].pages)
                    for own, valid in zip(conditions, self._condition_valid, strict=True):
                        own += islice(held, len(valid))
            parts.append(
                Part(
                    stream.request.size,
                    feed.roster.once,
                    tuple(
                        _sequence(own, views, feed.roster)
                        for own, (_, views) in zip(distinct, found, strict=True)
                    ),
                    branches,
                    schedule.table_base,
                    schedule.timesteps,
                    schedule.table_offsets,
                    schedule.coefficient_offsets,
                )
            )
        shape = self._shape(tuple(parts))
        bases = np.array([stream.schedule.coefficient_base for stream, _ in work])
        weights, weight_bases = _weights(work)
        return Layout(
            **self._placed(shape, np.array(pages, np.int64), np.array(positions, np.int64)),
            conditions=tuple(
                [
                    table.with_pages(torch.tensor(own, dtype=torch.int32))
                    for table, own in zip(shape.conditions, conditions, strict=False)
                ]
            ),
            weights=weights,
            weight_rows=shape.solver_rows + weight_bases[shape.update_owners],
            coefficients=shape.solver_rows + bases[shape.update_owners],
            keys=_keys(work, shape.update_levels),
        )

    def rest(self, layout: Layout) -> Layout:
        """Of the pass that follows one with this layout: the same pages, without what it feeds once."""
        shape = layout.shape
        if shape.rest is None:
            shape.rest = self._shape_of(tuple([part.rest for part in shape.parts]))
        tokens = shape.cell_tokens.cumsum() - shape.cell_tokens
        positions = layout.positions.numpy()[tokens[shape.cells_again], 0]
        return replace(
            layout,
            **self._placed(shape.rest, layout.ids, positions),
            conditions=tuple(
                [
                    table.with_pages(own.pages)
                    for table, own in zip(shape.rest.conditions, layout.conditions, strict=True)
                ]
            ),
        )

    def forget(self) -> None:
        self._shapes.clear()

    # --- private

    def _placed(self, shape: Shape, ids: np.ndarray, positions: np.ndarray) -> dict[str, Any]:
        """What pages and places of a layout come to. positions: of the frames of all cells."""
        tokens = shape.places.copy()
        tokens[:, 0] = np.repeat(positions, shape.cell_tokens)
        tables = [
            lists.table.with_pages(torch.from_numpy(ids[lists.listed].astype(np.int32)))
            for lists in shape.lists
        ]
        return {
            "shape": shape,
            "ids": ids,
            "slots": torch.from_numpy(ids[shape.slot_places] * self._page_rows + shape.slot_rows),
            "positions": torch.from_numpy(tokens),
            "table": tables[0],
            "layers": tuple([tables[number] for number in shape.of_layer]),
        }

    def _shape(self, parts: tuple[Part, ...]) -> Shape:
        # The oldest goes first, whoever was used last: the keys are long, and hashing one twice costs more
        # than a shape that is made anew now and then.
        shape = self._shapes.get(parts)
        if shape is None:
            shape = self._shapes[parts] = self._shape_of(parts)
            if len(self._shapes) > SHAPES_KEPT:
                self._shapes.pop(next(iter(self._shapes)))
        return shape

    def _shape_of(self, parts: tuple[Part, ...]) -> Shape:
        spec = self._spec
        branches = max(len(part.branches) for part in parts)
        branch_cells: list[list[int]] = [[] for _ in range(branches)]
        sequences: list[SequenceViews] = []
        owners: list[int] = []
        levels: list[int] = []
        moves: list[bool] = []
        leads: list[int] = []
        further: list[int] = []
        solved: list[int] = []
        contexts: list[tuple[int, int, bool]] = []
        frame_valid: list[list[int]] = []
        of_tokens = [spec.tokens(part.size) for part in parts]
        for owner, part in enumerate(parts):
            for branch in range(branches):
                if branch >= len(part.branches):
                    # Of weight 0: any cell of its span.
                    branch_cells[branch] += branch_cells[0][len(branch_cells[branch]) :]
                    continue
                own, start = part.sequences[part.branches[branch]], len(levels)
                sequences.append(own.views)
                frame_valid.append(valid_rows(of_tokens[owner], self._page_rows))
                owners += [owner] * len(own.levels)
                leads += [start] * len(own.levels)
                levels += own.levels
                moves += own.updates
                further += [part.table_offsets[track] for track in own.tracks]
                solved += [part.coefficient_offsets[track] for track in own.tracks]
                if own.views.feeds_context:
                    level, track, updates = own.first
                    contexts.append((owner, level + part.table_offsets[track], updates))
                branch_cells[branch] += [
                    start + offset for offset, updates in enumerate(own.updates) if updates
                ]

        seen, of_layer = by_layer(sequences)
        all_lists = [page_lists(own, spec, self._context_valid, frame_valid) for own in seen]
        lists = all_lists[0]
        cells = np.array(branch_cells, np.int64)
        of_cells, of_contexts = np.array(owners, np.int64), np.array(contexts, np.int64).reshape(-1, 3)
        first, lead = np.array(levels, np.int64), np.array(leads, np.int64)
        told = first + np.array(further, np.int64)
        rows = self._rows(parts, of_cells, lead, of_contexts, told)
        of_contexts[:, 1] += of_contexts[:, 2]
        risen = self._rows(parts, of_cells, lead, of_contexts, told + np.array(moves, np.int64))
        update_owners, update_levels = of_cells[cells[0]], first[cells[0]]
        cell_tokens = np.array(of_tokens)[of_cells]
        tokens = np.concatenate([np.full(len(contexts), spec.context_tokens), cell_tokens])
        spans = _spans(of_tokens, parts)
        # Cells are counted in their span.
        begins = np.cumsum([0, *(span.cells for span in spans)])[:-1]
        in_span = np.repeat(begins, [span.updates for span in spans])
        wanted = np.repeat(np.concatenate([np.zeros(len(contexts), bool), np.array(moves, bool)]), tokens)
        again = np.array(moves, bool) | ~np.array([part.once for part in parts])[of_cells]
        return Shape(
            parts=parts,
            num_contexts=lists.num_contexts,
            lists=tuple(all_lists),
            of_layer=of_layer,
            conditions=self._condition_tables(sequences, cell_tokens) if self._crosses else (),
            wanted=None if wanted.all() else torch.from_numpy(wanted),
            slot_places=np.repeat(lists.fed_places, lists.fed_rows),
            slot_rows=ranges(np.zeros_like(tokens), tokens) % self._page_rows,
            cell_tokens=cell_tokens,
            places=np.concatenate(
                [np.tile(_places(spec.grid(part.size)), (part.cells, 1)) for part in parts]
            ),
            spans=spans,
            branch_cells=torch.from_numpy(cells - in_span),
            rows=np.repeat(rows, tokens),
            row_moves=np.repeat(risen - rows, tokens),
            solver_rows=update_levels + np.array(solved, np.int64)[cells[0]],
            update_levels=update_levels,
            token_owners=np.repeat(np.concatenate([of_contexts[:, 0], of_cells]), tokens),
            update_owners=update_owners,
            cells_again=again,
        )

    def _condition_tables(
        self, sequences: list[SequenceViews], cell_tokens: np.ndarray
    ) -> tuple[FrameTable, ...]:
        """All cells of a sequence see each part of its condition, and nothing else."""
        cells = [len(views.own) for views in sequences if views.own]
        return tuple(
            FrameTable.from_flat(
                cell_tokens,
                cells,
                np.full(len(cells), len(valid)),
                np.zeros(len(cells) * len(valid), np.int32),
                np.tile(valid, len(cells)),
                np.full(len(cell_tokens), len(valid)),
            )
            for valid in self._condition_valid
        )

    def _rows(
        self,
        parts: tuple[Part, ...],
        owners: np.ndarray,
        leads: np.ndarray,
        contexts: np.ndarray,
        levels: np.ndarray,
    ) -> np.ndarray:
        """int32 [K + N]: row of the model's tables for each fed context and each frame at `levels`.

        leads: the cell of each one's first frame. contexts: [K, ..], owner and level of the frame that each
        fed context goes by.
        """
        model = self._model
        bases = np.array([part.table_base for part in parts])
        of_contexts = [
            model.condition_row(level, parts[owner].timesteps) for owner, level, _ in contexts.tolist()
        ]
        found = np.concatenate([np.array(of_contexts, np.int64), model.frame_rows(levels, levels[leads])])
        return (found + bases[np.concatenate([contexts[:, 0], owners])]).astype(np.int32)


def _spans(tokens: list[int], parts: tuple[Part, ...]) -> tuple[Span, ...]:
    """tokens: of the frames of each part."""
    spans = []
    for count, group in groupby(zip(tokens, parts, strict=True), key=itemgetter(0)):
        own = [part for _, part in group]
        cells, updates = sum(part.cells for part in own), sum(part.updates for part in own)
        spans.append(Span(count, cells, updates))
    return tuple(spans)


def _places(grid: tuple[int, ...]) -> np.ndarray:
    """int64 [tokens, 1 + axes] of a frame, its own place left at 0."""
    inside = np.indices(grid).reshape(len(grid), -1).T
    return np.concatenate([np.zeros_like(inside[:, :1]), inside], axis=1)


def _sequence(own: Roster, views: SequenceViews, all_fed: Roster) -> FedSequence:
    """all_fed: by the branch that feeds most: a condition goes by its first cell where it feeds no frames."""
    lead = own if own.frames else all_fed
    first = lead.levels[0], lead.tracks[0], lead.updates[0]
    return FedSequence(views, own.updates, own.levels, own.tracks, first)


def _keys(work: Work, levels: np.ndarray) -> np.ndarray | None:
    if not any(stream.schedule.draws_noise for stream, _ in work):
        return None
    rows = [
        (stream.request.seed, stream.request.noise_stream, frame, Purpose.STEP, 0)
        for stream, feed in work
        for frame in feed.roster.updated
    ]
    keys = np.array(rows, np.int64).reshape(len(rows), 5)
    keys[:, 4] = levels
    return keys


def _weights(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """float32 [R, B], the tables of all streams, 0 where one has fewer branches; where each begins."""
    tables = [stream.weights for stream, _ in work]
    joined = np.zeros((sum(table.shape[1] for table in tables), max(map(len, tables))), np.float32)
    begins, row = [], 0
    for table in tables:
        begins.append(row)
        joined[row : row + table.shape[1], : len(table)] = table.T
        row += table.shape[1]
    return joined, np.array(begins)
