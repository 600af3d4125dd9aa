# SPDX-License-Identifier: Apache-2.0
"""One pass over all running streams: their feeds, packed into the tensors that the model and the solver take.

From pass to pass mostly levels change, so everything else is kept in a `Layout` and used again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, compress

import torch

from ardiff_engine import ops
from ardiff_engine.device import upload
from ardiff_engine.engine.layout import Layout, LayoutBuilder, Levels, Work
from ardiff_engine.engine.page_lists import Span
from ardiff_engine.engine.schedules import Schedules
from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.made import Making
from ardiff_engine.memory.page_pool import PagePool
from ardiff_engine.models.cell_batch import CellBatch, ConditionPages
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.models.spec import ModelSpec, Size
from ardiff_engine.ops.philox_normal import philox_normal


@dataclass(frozen=True, slots=True, eq=False)
class PageTurns:
    """What a pass begins with, where frames are seen elsewhere than they were written: page pages[i] becomes
    page sources[i] with its K turned by places[i]. int64 [n] each, in host memory.

    The pass itself writes neither, so it may be run twice."""

    sources: torch.Tensor
    pages: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of(cls, work: Work) -> PageTurns | None:
        """What the streams of a pass need; None: nothing is turned."""
        turns = [turn for state, _ in work for turn in state.pages.turns]
        return cls(*torch.tensor(turns, dtype=torch.int64).unbind(1)) if turns else None

    def run(self, pool: PagePool, spec: ModelSpec) -> None:
        if spec.frame_angles is None:
            raise ConfigError("frames seen elsewhere than they were written, by a model without frame_angles")
        device = pool.k.device
        sources, pages, places = (upload(t, device) for t in (self.sources, self.pages, self.places))
        angles = upload(torch.tensor(spec.frame_angles, dtype=torch.float64), device)
        ops.copy_pages_(pool.k, pool.v, sources, pages)
        ops.rotate_pages_(pool.k, pages, places, angles)


@dataclass(slots=True, eq=False)
class Batch:
    """cells: for the model. x [X, C], the tokens of all cells; condition [K, *spec.condition.shape] or None.

    spans: the cells in their order, by the tokens of their frames. The U updates, stream by stream, Y tokens
        in all: `branch_cells` int64 [B, U] the cell of each guidance branch, counted in its span, `weights`
        float32 [B, U] its share (0 where a stream has fewer branches), `coefficients` int64 [U] rows of the
        coefficient table, `keys` int64 [U, 5] of step noise, None if no solver draws any, `history` float32
        [P, Y, C] the predictions of the P steps before, the latest first, None if no solver looks back,
        `noise` float32 [Y, C] in place of keys, where a stream brings that of its steps.
    ahead: the passes that may follow, without x and history. makings, turns: what the pass begins with, in
        this order.
    """

    cells: CellBatch
    x: torch.Tensor
    condition: torch.Tensor | None
    spans: tuple[Span, ...]
    branch_cells: torch.Tensor
    weights: torch.Tensor
    coefficients: torch.Tensor
    keys: torch.Tensor | None
    history: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    ahead: Iterator[Batch] = field(default_factory=lambda: iter(()))
    makings: tuple[tuple[Making, Size | None], ...] = ()
    turns: PageTurns | None = None

    @property
    def num_cells(self) -> int:
        return sum(span.cells for span in self.spans)

    def following(self, x: torch.Tensor, history: torch.Tensor | None) -> Batch:
        """One pass later: each cell that moves is at its next level."""
        later = next(self.ahead)
        later.x, later.history, later.ahead = x, history, self.ahead
        return later

    def by_span(self, out: torch.Tensor) -> list[tuple[Batch, torch.Tensor]]:
        """What the solver needs of each span, as a batch, and its part of the network's output [X, C]."""
        if len(self.spans) == 1:
            return [(self, out)]
        parts = []
        token = update = moved = 0
        for span in self.spans:
            tokens = slice(token, token + span.cells * span.tokens)
            updates = slice(update, update + span.updates)
            moves = slice(moved, moved + span.updates * span.tokens)
            token, update, moved = tokens.stop, updates.stop, moves.stop
            part = replace(
                self,
                x=self.x[tokens],
                spans=(span,),
                branch_cells=self.branch_cells[:, updates],
                weights=self.weights[:, updates],
                coefficients=self.coefficients[updates],
                keys=None if self.keys is None else self.keys[updates],
                history=None if self.history is None else self.history[:, moves],
                noise=None if self.noise is None else self.noise[moves],
            )
            parts.append((part, out[tokens]))
        return parts


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its index tensors on the model's device."""
    cells = batch.cells

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return upload(tensor, device)

    tables = {id(table): table.to(device) for table in (cells.table, *cells.layers)}
    cells = replace(
        cells,
        slots=moved(cells.slots),
        positions=moved(cells.positions),
        frame_ids=moved(cells.frame_ids),
        wanted=None if cells.wanted is None else moved(cells.wanted),
        table=tables[id(cells.table)],
        layers=tuple([tables[id(table)] for table in cells.layers]),
        conditions=cells.conditions
        and replace(cells.conditions, tables=tuple([t.to(device) for t in cells.conditions.tables])),
    )
    return replace(
        batch,
        cells=cells,
        branch_cells=moved(batch.branch_cells),
        weights=moved(batch.weights),
        coefficients=moved(batch.coefficients),
        keys=None if batch.keys is None else moved(batch.keys),
    )


class Packer:
    """Packs feeds. Holds what stays the same from pass to pass.

    Index tensors are packed in host memory. Where the model is elsewhere, whoever runs the pass copies them
    all at once (engine.cuda.buffers); latents and conditions lie with the model already.
    """

    def __init__(self, model: VideoModel, pool: PagePool, schedules: Schedules) -> None:
        self.device = model.device
        self._pool = pool
        self._spec = model.spec
        self._schedules = schedules
        self._builder = LayoutBuilder(model, pool.page_rows)
        self._model = model

    def pack(self, work: Work, passes: int = 1) -> Batch:
        """The first pass over this work, with those that may follow it."""
        x = self._latents(work)
        self._write_conditions(work)
        # A pass without what is fed once is laid out as the rest of one with it.
        once = any([feed.fed_once for _, feed in work])
        laid = [state.laid(feed if once else feed.later(-feed.passed)) for state, feed in work]
        layout = self._builder.layout(tuple([place for place, _ in laid]))
        frames = tuple(chain.from_iterable([own for _, own in laid]))
        batches = self._batches(work, layout, frames, 1, x) if once else []
        if passes > len(batches):
            if any([part.once for part in layout.shape.parts]):
                frames = tuple(compress(frames, layout.shape.cells_again))
                layout = self._builder.rest(layout)
            later = [(state, feed.later(1)) for state, feed in work] if once else work
            batches += self._batches(later, layout, frames, passes - len(batches), x)
        batch, *ahead = batches
        batch.ahead = iter(ahead)
        batch.history = _history(work, x)
        if batch.keys is not None:
            batch.noise = _noise(work, batch.keys, x)
            batch.keys = batch.keys if batch.noise is None else None
        batch.makings = tuple([(own, state.request.size) for state, _ in work for own in state.pages.makings])
        batch.turns = PageTurns.of(work)
        return batch

    def _batches(
        self, work: Work, layout: Layout, frames: tuple[int, ...], passes: int, x: torch.Tensor
    ) -> list[Batch]:
        """That many passes from this one on, which differ in their levels alone. frames: as in
        Layout.positions."""
        shape, pool, positions = layout.shape, self._pool, layout.positions(frames)
        contexts = [state.conditions for state, feed in work if feed.feeds_context]
        condition, inputs = torch.cat(contexts) if contexts else None, self._frame_inputs(work)
        conditions = ConditionPages(pool.k, pool.v, layout.conditions) if layout.conditions else None
        return [
            Batch(
                cells=CellBatch(
                    num_contexts=shape.num_contexts,
                    slots=layout.slots,
                    positions=positions,
                    frame_ids=levels.frame_ids,
                    table=layout.table,
                    k_pages=pool.k,
                    v_pages=pool.v,
                    wanted=shape.wanted,
                    conditions=conditions,
                    layers=layout.layers,
                    inputs=inputs,
                    branches=shape.token_branches,
                ),
                x=x,
                condition=condition,
                spans=shape.spans,
                branch_cells=shape.branch_cells,
                weights=levels.weights,
                coefficients=levels.coefficients,
                keys=levels.keys,
            )
            for levels in Levels.of(work, shape, passes)
        ]

    def _write_conditions(self, work: Work) -> None:
        """K and V of cross conditions that nobody has written yet."""
        for state, _ in work:
            for branch, stored in enumerate(state.pages.conditions):
                if not stored.written:
                    condition = state.conditions[branch]
                    of_pages = stored.pages, self._pool.page_rows, stored.key.distinct
                    rows = self._spec.condition.slots(*of_pages)
                    slots = upload(torch.tensor(rows), condition.device)
                    self._model.write_condition(condition, slots, self._pool.k, self._pool.v)
                    stored.written = True

    def _frame_inputs(self, work: Work) -> dict[str, torch.Tensor]:
        """As in CellBatch."""
        wanted = self._spec.frame_inputs
        if not wanted:
            return {}
        cells = [
            state.inputs.of(frame)
            for state, feed in work
            for roster in state.rosters(feed)
            for frame in feed.numbered(roster.frames)
        ]
        return {own.name: torch.cat(rows) for own, rows in zip(wanted, zip(*cells, strict=True), strict=True)}

    def _latents(self, work: Work) -> torch.Tensor:
        """x, as in Batch, as the streams have it."""
        latents: list[torch.Tensor] = []
        for state, feed in work:
            for branch, roster in zip(state.branches, state.rosters(feed), strict=True):
                latents += state.latents_of(branch, roster, feed)
        return torch.cat(latents)

    def turn_pages(self, batch: Batch) -> None:
        """What the batch begins with, on the device."""
        for making, size in batch.makings:
            making.run(self._pool, self._spec, size)
        if batch.turns is not None:
            batch.turns.run(self._pool, self._spec)

    def forget(self) -> None:
        """Drop kept layouts: workspace that can be built again."""
        self._builder.forget()


def _noise(work: Work, keys: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
    """As in Batch. Rows of streams that bring none are counted by keys [U, 5], as in the solver."""
    if not len(keys) or not any(state.noise.gives_updates for state, _ in work):
        return None
    rows: list[torch.Tensor] = []
    counts = [len(feed.first.updated) for _, feed in work]
    for (state, feed), own in zip(work, keys.split(counts), strict=True):
        if state.noise.gives_updates:
            rows += map(state.noise.update, feed.updated, feed.updated_levels)
        else:
            drawn = philox_normal(upload(own, x.device), state.tokens * x.shape[1])
            rows.append(drawn.reshape(-1, x.shape[1]))
    return torch.cat(rows)


def _history(work: Work, x: torch.Tensor) -> torch.Tensor | None:
    """As in Batch. Planes that a stream does not have are zeros: its coefficients for them are 0."""
    planes = max(state.schedule.looks_back for state, _ in work)
    if not planes:
        return None
    rows = [(state.history.get(frame), state.tokens) for state, feed in work for frame in feed.updated]
    history = x.new_zeros(planes, sum(tokens for _, tokens in rows), x.shape[1])
    begin = 0
    for row, tokens in rows:
        if row is not None:
            history[: len(row), begin : begin + tokens] = row
        begin += tokens
    return history
