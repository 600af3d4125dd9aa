# SPDX-License-Identifier: Apache-2.0
"""One pass over all running streams: their feeds, packed into the tensors that the model and the solver take.

Token order: the contexts that are fed, then the frames, stream by stream and branch by branch. Frames whose
views start at the same frame form one group: each sees a prefix of the group's page list. From tick to tick
mostly levels change, so everything else is kept in a `Layout` and used again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch

from ardiff_engine.diffusion.noise import PURPOSE_STEP
from ardiff_engine.engine.feed import Feed, Roster
from ardiff_engine.engine.stream import Stream
from ardiff_engine.memory.page_pool import PagePool
from ardiff_engine.models.ar_diffusion import ARDiffusionTransformer
from ardiff_engine.models.cell_batch import CellBatch
from ardiff_engine.ops.frame_table import FrameTable

LAYOUTS_KEPT = 16

Work = list[tuple[Stream, Feed]]


@dataclass(frozen=True, slots=True)
class Batch:
    """cells: for the model. x [N, L, C]; condition [K, context_tokens, context_dim] or None.

    The U updates, stream by stream: `branch_cells` int64 [B, U] the cell of each guidance
        branch, `weights` float32 [B, U] its share (0 where a stream has fewer branches), `coefficients` int64
        [U] rows of the coefficient table, `keys` int64 [U, 5] of step noise, None if no solver draws any.
    """

    cells: CellBatch
    x: torch.Tensor
    condition: torch.Tensor | None
    branch_cells: torch.Tensor
    weights: torch.Tensor
    coefficients: torch.Tensor
    keys: torch.Tensor | None


@dataclass(slots=True)
class _Views:
    """The flat lists of a FrameTable while they grow."""

    query_tokens: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    valid: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)

    def add(self, query_tokens: list[int], pages: list[int], valid: list[int], seen: list[int]) -> None:
        """A group: tokens and seen pages of its query frames, and its page list."""
        self.query_tokens += query_tokens
        self.frames.append(len(query_tokens))
        self.entries.append(len(pages))
        self.pages += pages
        self.valid += valid
        self.seen += seen

    def table(self) -> FrameTable:
        return FrameTable.from_flat(
            self.query_tokens, self.frames, self.entries, self.pages, self.valid, self.seen
        )


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What stays the same while no frame starts, finishes or moves, and no stream joins or leaves.

    branches: guidance branches of each stream of the pass. The rest as in CellBatch and Batch.
    """

    num_contexts: int
    slots: torch.Tensor
    positions: torch.Tensor
    table: FrameTable
    branch_cells: torch.Tensor
    weights: torch.Tensor


class Packer:
    """Packs feeds. Holds what stays the same from pass to pass."""

    def __init__(self, model: ARDiffusionTransformer, pool: PagePool) -> None:
        self._model = model
        self._pool = pool
        spec = model.spec
        self._spec = spec
        self._frame_valid = _valid_rows(spec.tokens_per_frame, pool.page_rows)
        self._context_valid = _valid_rows(spec.context_tokens, pool.page_rows)
        # Index tensors are packed in host memory. Where the model is elsewhere, whoever runs the pass copies
        # them all at once (engine.tick_buffers); latents and conditions lie with the model already.
        self._device = torch.device("cpu")
        self._layouts: OrderedDict[tuple[object, ...], Layout] = OrderedDict()

    def pack(self, work: Work) -> Batch:
        key = tuple((stream.number, stream.pages.version, feed.roster) for stream, feed in work)
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._layouts[key] = self._lay_out(work)
            if len(self._layouts) > LAYOUTS_KEPT:
                self._layouts.popitem(last=False)
        self._layouts.move_to_end(key)
        device = self._device
        cells = CellBatch(
            num_contexts=layout.num_contexts,
            slots=layout.slots,
            frame_positions=layout.positions,
            frame_ids=torch.from_numpy(self._modulation_rows(work)).to(device),
            table=layout.table,
            k_pages=self._pool.k,
            v_pages=self._pool.v,
        )
        conditions = [stream.conditions for stream, feed in work if feed.roster.feeds_context]
        latents: list[torch.Tensor] = []
        coefficients: list[int] = []
        for stream, feed in work:
            latents += [stream.latents.stacked(feed.roster.frames)] * len(stream.weights)
            base = stream.schedule.coefficient_base
            coefficients += [base + level for level in feed.updated_levels]
        noisy = any(stream.schedule.draws_noise for stream, _ in work)
        return Batch(
            cells=cells,
            x=torch.cat(latents),
            condition=torch.cat(conditions) if conditions else None,
            branch_cells=layout.branch_cells,
            weights=layout.weights,
            coefficients=torch.tensor(coefficients, dtype=torch.int64, device=device),
            keys=self._keys(work) if noisy else None,
        )

    def forget(self) -> None:
        """Drop kept layouts: workspace that can be built again."""
        self._layouts.clear()

    # --- private

    def _modulation_rows(self, work: Work) -> np.ndarray:
        """int32 [T]: row of the modulation table for each token."""
        model, spec = self._model, self._spec
        contexts: list[int] = []
        frames: list[int] = []
        for stream, feed in work:
            base, first = stream.schedule.modulation_base, feed.levels[0]
            branches = len(stream.weights)
            if feed.roster.feeds_context:
                contexts += [base + model.context_row(first, stream.schedule.timesteps)] * branches
            frames += [base + model.frame_row(level, first) for level in feed.levels] * branches
        return np.concatenate(
            [
                np.repeat(np.asarray(contexts, np.int32), spec.context_tokens),
                np.repeat(np.asarray(frames, np.int32), spec.tokens_per_frame),
            ]
        )

    def _keys(self, work: Work) -> torch.Tensor:
        rows = [
            (stream.request.seed, stream.request.noise_stream, frame, PURPOSE_STEP, level)
            for stream, feed in work
            for frame, level in zip(feed.roster.updated, feed.updated_levels, strict=True)
        ]
        return torch.tensor(rows, dtype=torch.int64, device=self._device).reshape(len(rows), 5)

    def _lay_out(self, work: Work) -> Layout:
        spec, device = self._spec, self._device
        views = _Views()
        context_pages: list[list[int]] = []
        for stream, feed in work:
            if feed.roster.feeds_context:
                for branch, pages in enumerate(stream.pages.context):
                    context_pages.append(pages)
                    self._add_context_view(views, stream, feed.roster, branch)

        frame_pages: list[list[int]] = []
        positions: list[int] = []
        branches = max(len(stream.weights) for stream, _ in work)
        branch_cells: list[list[int]] = [[] for _ in range(branches)]
        weights: list[list[float]] = [[] for _ in range(branches)]
        for stream, feed in work:
            roster = feed.roster
            for branch in range(branches):
                used = branch < len(stream.weights)
                start = len(frame_pages) if used else 0
                if used:
                    self._add_frame_views(views, stream, roster, branch)
                    frame_pages += [stream.pages.frames[branch][frame] for frame in roster.frames]
                    positions += [frame - roster.origin for frame in roster.frames]
                updated = [offset for offset, updates in enumerate(roster.updates) if updates]
                branch_cells[branch] += [start + offset for offset in updated]
                weights[branch] += [stream.weights[branch] if used else 0.0] * len(updated)

        slots = np.concatenate(
            [self._slots(context_pages, spec.context_tokens), self._slots(frame_pages, spec.tokens_per_frame)]
        )
        count = len(branch_cells[0])
        return Layout(
            num_contexts=len(context_pages),
            slots=torch.from_numpy(slots).to(device),
            positions=torch.tensor(positions, dtype=torch.int64, device=device),
            table=views.table().to(device),
            branch_cells=torch.tensor(branch_cells, dtype=torch.int64, device=device).reshape(
                branches, count
            ),
            weights=torch.tensor(weights, dtype=torch.float32, device=device).reshape(branches, count),
        )

    def _add_context_view(self, views: _Views, stream: Stream, roster: Roster, branch: int) -> None:
        pages, valid = list(stream.pages.context[branch]), list(self._context_valid)
        if self._spec.mask != "temporal_causal":
            frames = roster.visible(roster.frames[0], roster.frames[-1])
            pages, valid = pages + stream.pages.view(branch, frames), valid + self._frame_valid * len(frames)
        views.add([self._spec.context_tokens], pages, valid, [len(pages)])

    def _add_frame_views(self, views: _Views, stream: Stream, roster: Roster, branch: int) -> None:
        """Groups of frames whose views start alike; `seen` counts the pages up to each frame's own end."""
        per_frame, context = len(self._frame_valid), stream.pages.context[branch]
        frames = roster.frames
        firsts = [stream.policy.first_seen(frame, roster.newest) for frame in frames]
        # What any of them sees, once: views are runs of it, after the sinks that lie before the run.
        shown = roster.visible(min(firsts), frames[-1])
        shown_pages = stream.pages.view(branch, shown)
        begin = 0
        for first, group in groupby(firsts):
            end = begin + sum(1 for _ in group)
            members = frames[begin:end]
            sinks = bisect_left(shown, min(roster.sinks.stop, first)) if roster.sinks else 0
            start, stop = bisect_left(shown, first), bisect_right(shown, members[-1])
            pages = (
                context + shown_pages[: sinks * per_frame] + shown_pages[start * per_frame : stop * per_frame]
            )
            valid = self._context_valid + self._frame_valid * (sinks + stop - start)
            before = len(context) + (sinks - start) * per_frame
            seen = [before + bisect_right(shown, frame) * per_frame for frame in members]
            if self._spec.mask == "none":
                seen = [len(pages)] * len(members)
            views.add([self._spec.tokens_per_frame] * len(members), pages, valid, seen)
            begin = end

    def _slots(self, pages: list[list[int]], tokens: int) -> np.ndarray:
        """Pages of units of `tokens` tokens each -> int64 slots, unit after unit."""
        if not pages:
            return np.empty(0, np.int64)
        rows = self._pool.page_rows
        slots = np.asarray(pages, np.int64)[:, :, None] * rows + np.arange(rows)
        return slots.reshape(len(pages), -1)[:, :tokens].reshape(-1)


def _valid_rows(tokens: int, page_rows: int) -> list[int]:
    full, rest = divmod(tokens, page_rows)
    return [page_rows] * full + ([rest] if rest else [])
