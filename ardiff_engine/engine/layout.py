# SPDX-License-Identifier: Apache-2.0
"""Where the cells of a pass lie and what they see: all that stays the same while only levels change.

Token order: the contexts that are fed, then the frames, sequence by sequence; a sequence is one guidance
branch of one stream. While a window slides, the shape of a pass comes back again and again, with other pages
and other frames. So shapes are kept, and laying out a pass whose shape is known only fills in these.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import torch

from ardiff_engine.engine.condition_store import condition_tables
from ardiff_engine.engine.feed import Feed, SequenceViews
from ardiff_engine.engine.page_lists import (
    PageLists,
    Part,
    Place,
    Span,
    by_layer,
    page_lists,
    ranges,
    spans_of,
    valid_rows,
)
from ardiff_engine.engine.state import StreamState
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.ops.frame_table import FrameTable
from ardiff_engine.purposes import Purpose

Work = list[tuple[StreamState, Feed]]

LAYOUTS_KEPT = 64
SHAPES_KEPT = 32
LEVELS_KEPT = 16  # of a shape


@dataclass(slots=True, eq=False)
class Layout:
    """For the model and the solver, as in CellBatch and Batch: `slots`, `table`, `layers`; conditions: the
    tables of cross conditions.

    ids: the pages of all sequences, as their lists name them. rest: of the pass after this one, once it was
    asked for.
    """

    shape: Shape
    ids: np.ndarray
    slots: torch.Tensor
    table: FrameTable
    layers: tuple[FrameTable, ...]
    conditions: tuple[FrameTable, ...]
    rest: Layout | None = None
    _frames: tuple[int, ...] = ()
    _positions: torch.Tensor | None = None

    def positions(self, frames: tuple[int, ...]) -> torch.Tensor:
        """As in CellBatch. frames: the positions of the frames of all cells."""
        # Those of the last call stay, as the passes of a roster share them.
        if self._positions is None or frames != self._frames:
            tokens = self.shape.places.copy()
            tokens[:, 0] = np.repeat(np.array(frames, np.int64), self.shape.cell_tokens)
            self._frames, self._positions = frames, torch.from_numpy(tokens)
        return self._positions


@dataclass(slots=True, eq=False)
class Shape:
    """What passes of the same parts have in common. For the model and the solver, as in CellBatch and Batch:
    `num_contexts`, `wanted`, `spans`, `branch_cells`.

    rows: int32 [T], of its stream's tables, in the first pass of each stream's roster. With every pass of its
        stream a token's row moves on by `row_moves` [T]. token_owners [T], update_owners [U]: which stream of
        the pass that is. solver_rows, update_levels: [U].
    slot_places, slot_rows: [T] where in the joined lists of pages a token's page is, and its row there.
    lists: of views that differ; of_layer: which of them each layer has, if not all the first one.
    conditions: with any pages. cell_tokens: [N]; token_branches: int64 [X]; places: int64 [X, 1 + axes], the
        positions of all tokens but for their frames'.
    rest: of the pass after this one, once it was asked for. levels: those that were worked out last.
        cells_again: [N] which of the cells it feeds.
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
    token_branches: np.ndarray
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
    levels: dict[tuple[object, ...], list[Levels]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """What differs between passes that follow each other over the same cells: as in CellBatch and Batch."""

    frame_ids: torch.Tensor
    weights: torch.Tensor
    coefficients: torch.Tensor
    keys: torch.Tensor | None

    @classmethod
    def of(cls, work: Work, shape: Shape, passes: int) -> list[Levels]:
        """Of so many passes from this one on. The same come again with each cycle of the streams' plans,
        unless they count noise, whose keys name frames."""
        if any([state.schedule.draws_noise for state, _ in work]):
            return cls._worked_out(work, shape, passes)
        # Weights by their values: those of a stream that has ended are not held, and serve the next one.
        own = [
            (feed.passed, state.schedule.table_base, state.schedule.coefficient_base, state.weights.tobytes())
            for state, feed in work
        ]
        key = (passes, *own)
        kept = shape.levels.get(key)
        if kept is None:
            kept = shape.levels[key] = cls._worked_out(work, shape, passes)
            if len(shape.levels) > LEVELS_KEPT:
                shape.levels.pop(next(iter(shape.levels)))
        return kept

    @classmethod
    def _worked_out(cls, work: Work, shape: Shape, passes: int) -> list[Levels]:
        passed = np.array([feed.passed for _, feed in work], np.int32)
        table_bases = np.array([state.schedule.table_base for state, _ in work], np.int32)
        bases = np.array([state.schedule.coefficient_base for state, _ in work])
        weights, weight_bases = _weights(work)
        ahead, owners = np.arange(passes, dtype=np.int32)[:, None], shape.update_owners
        risen = passed[owners] + ahead
        rows = shape.rows + table_bases[shape.token_owners]
        rows = rows + shape.row_moves * (passed[shape.token_owners] + ahead)
        shares = weights[shape.solver_rows + weight_bases[owners] + risen].transpose(0, 2, 1)
        keys: list[torch.Tensor] | list[None] = [None] * passes
        first = _keys(work, shape.update_levels)
        if first is not None:
            counted = np.repeat(first[None], passes, axis=0)
            counted[:, :, 4] += risen
            keys = list(torch.from_numpy(counted).unbind(0))
        arrays = rows, np.ascontiguousarray(shares), shape.solver_rows + bases[owners] + risen
        return list(map(cls, *[torch.from_numpy(array).unbind(0) for array in arrays], keys))


class LayoutBuilder:
    """Lays passes out for one model and pool of pages, in host memory."""

    def __init__(self, model: VideoModel, page_rows: int) -> None:
        spec = model.spec
        self._model = model
        self._spec = spec
        self._page_rows = page_rows
        self._context_valid = valid_rows(spec.context_tokens, page_rows)
        self._crosses = spec.condition.kind == "cross"
        self._condition_pages = spec.condition.pages(page_rows) if self._crosses else ()
        self._layouts: OrderedDict[tuple[Place, ...], Layout] = OrderedDict()
        self._shapes: dict[tuple[Part, ...], Shape] = {}

    def layout(self, places: tuple[Place, ...]) -> Layout:
        """Of a pass with these parts."""
        # Streams whose windows slide use their pages in turns: the same places come again.
        layout = self._layouts.get(places)
        if layout is None:
            layout = self._layouts[places] = self._laid_out(places)
            if len(self._layouts) > LAYOUTS_KEPT:
                self._layouts.popitem(last=False)
        self._layouts.move_to_end(places)
        return layout

    def rest(self, layout: Layout) -> Layout:
        """Of the pass that follows one with this layout: the same pages, without what it feeds once."""
        if layout.rest is None:
            shape = layout.shape
            if shape.rest is None:
                shape.rest = self._shape_of(tuple([part.rest for part in shape.parts]))
            ids = [own.pages for own in layout.conditions]
            layout.rest = self._placed(shape.rest, layout.ids, ids)
        return layout.rest

    def forget(self) -> None:
        self._layouts.clear()
        self._shapes.clear()

    # --- private

    def _laid_out(self, places: tuple[Place, ...]) -> Layout:
        shape = self._shape(tuple([place.part for place in places]))
        conditions: list[torch.Tensor] = []
        if self._condition_pages:
            held = torch.tensor([page for place in places for page in place.conditions], dtype=torch.int32)
            of_parts = held.reshape(-1, sum(self._condition_pages)).split(list(self._condition_pages), dim=1)
            conditions = [own.reshape(-1) for own in of_parts]
        ids = np.array([page for place in places for page in place.pages], np.int64)
        return self._placed(shape, ids, conditions)

    def _placed(self, shape: Shape, ids: np.ndarray, conditions: list[torch.Tensor]) -> Layout:
        """With these pages; conditions: of each part of cross conditions."""
        tables = [
            lists.table.with_pages(torch.from_numpy(ids[lists.listed].astype(np.int32)))
            for lists in shape.lists
        ]
        return Layout(
            shape=shape,
            ids=ids,
            slots=torch.from_numpy(ids[shape.slot_places] * self._page_rows + shape.slot_rows),
            table=tables[0],
            layers=tuple([tables[number] for number in shape.of_layer]),
            conditions=tuple(
                [table.with_pages(pages) for table, pages in zip(shape.conditions, conditions, strict=False)]
            ),
        )

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
        distinct: list[tuple[int, ...]] = []
        owners: list[int] = []
        numbers: list[int] = []
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
                if self._crosses and own.views.own:
                    distinct.append(part.conditions[branch])
                frame_valid.append(valid_rows(of_tokens[owner], self._page_rows))
                owners += [owner] * len(own.levels)
                numbers += [branch] * len(own.levels)
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

        frames = [len(views.own) for views in sequences if views.own]
        seen, of_layer = by_layer(sequences)
        all_lists = [page_lists(own, spec, self._context_valid, frame_valid) for own in seen]
        lists = all_lists[0]
        cells = np.array(branch_cells, np.int64)
        of_cells, of_contexts = np.array(owners, np.int64), np.array(contexts, np.int64).reshape(-1, 3)
        first, lead = np.array(levels, np.int64), np.array(leads, np.int64)
        told = first + np.array(further, np.int64)
        rows = self._rows(parts, lead, of_contexts, told)
        of_contexts[:, 1] += of_contexts[:, 2]
        risen = self._rows(parts, lead, of_contexts, told + np.array(moves, np.int64))
        update_owners, update_levels = of_cells[cells[0]], first[cells[0]]
        cell_tokens = np.array(of_tokens)[of_cells]
        tokens = np.concatenate([np.full(len(contexts), spec.context_tokens), cell_tokens])
        spans = spans_of(of_tokens, parts)
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
            conditions=condition_tables(spec.condition, self._page_rows, frames, distinct, cell_tokens),
            wanted=None if wanted.all() else torch.from_numpy(wanted),
            slot_places=np.repeat(lists.fed_places, lists.fed_rows),
            slot_rows=ranges(np.zeros_like(tokens), tokens) % self._page_rows,
            cell_tokens=cell_tokens,
            token_branches=np.repeat(np.array(numbers, np.int64), cell_tokens),
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

    def _rows(
        self,
        parts: tuple[Part, ...],
        leads: np.ndarray,
        contexts: np.ndarray,
        levels: np.ndarray,
    ) -> np.ndarray:
        """int32 [K + N]: row of its schedule's tables for each fed context and each frame at `levels`.

        leads: the cell of each one's first frame. contexts: [K, ..], owner and level of the frame that each
        fed context goes by.
        """
        model = self._model
        of_contexts = [
            model.condition_row(level, parts[owner].timesteps) for owner, level, _ in contexts.tolist()
        ]
        rows = np.concatenate([np.array(of_contexts, np.int64), model.frame_rows(levels, levels[leads])])
        return rows.astype(np.int32)


def _places(grid: tuple[int, ...]) -> np.ndarray:
    """int64 [tokens, 1 + axes] of a frame, its own place left at 0."""
    inside = np.indices(grid).reshape(len(grid), -1).T
    return np.concatenate([np.zeros_like(inside[:, :1]), inside], axis=1)


def _keys(work: Work, levels: np.ndarray) -> np.ndarray | None:
    if not any(stream.schedule.draws_noise for stream, _ in work):
        return None
    rows = [
        (stream.request.seed, stream.request.noise_stream, frame, Purpose.STEP, 0)
        for stream, feed in work
        for frame in feed.updated
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
