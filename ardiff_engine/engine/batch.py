# SPDX-License-Identifier: Apache-2.0
"""One pass over all running streams: their feeds, packed into the tensors that the model and the solver take.

Token order: the contexts that are fed, then the frames, stream by stream and branch by branch. Frames whose
views start at the same frame form one group: each sees a prefix of the group's page list. From tick to tick
mostly levels change, so everything else is kept in a `Layout` and used again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import torch

from ardiff_engine.diffusion.noise import PURPOSE_STEP
from ardiff_engine.engine.feed import Feed
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

    The U updates: `updates` names stream and frame, `branch_cells` int64 [B, U] the cell of each guidance
        branch, `weights` float32 [B, U] its share (0 where a stream has fewer branches), `coefficients` int64
        [U] rows of the coefficient table, `keys` int64 [U, 5] of step noise, None if no solver draws any.
    """

    cells: CellBatch
    x: torch.Tensor
    condition: torch.Tensor | None
    updates: list[tuple[Stream, int]]
    branch_cells: torch.Tensor
    weights: torch.Tensor
    coefficients: torch.Tensor
    keys: torch.Tensor | None


@dataclass(slots=True)
class _Views:
    """The lists that become a FrameTable."""

    query_tokens: list[list[int]] = field(default_factory=list)
    pages: list[list[int]] = field(default_factory=list)
    valid: list[list[int]] = field(default_factory=list)
    seen: list[list[int]] = field(default_factory=list)

    def add(self, query_tokens: list[int], pages: list[int], valid: list[int], seen: list[int]) -> None:
        self.query_tokens.append(query_tokens)
        self.pages.append(pages)
        self.valid.append(valid)
        self.seen.append(seen)


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
        self._device = pool.k.device
        self._layouts: OrderedDict[tuple[object, ...], Layout] = OrderedDict()

    def pack(self, work: Work) -> Batch:
        key = tuple((stream.number, stream.pages.version, *feed.layout()) for stream, feed in work)
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
        conditions = [stream.conditions for stream, feed in work if feed.feeds_context]
        latents = [
            stream.latents[cell.frame]
            for stream, feed in work
            for _ in stream.weights
            for cell in feed.frames
        ]
        updates = [(stream, cell) for stream, feed in work for cell in feed.frames if cell.updates]
        coefficients = [stream.schedule.coefficient_base + cell.level for stream, cell in updates]
        noisy = any(stream.schedule.draws_noise for stream, _ in work)
        return Batch(
            cells=cells,
            x=torch.stack(latents),
            condition=torch.cat(conditions) if conditions else None,
            updates=[(stream, cell.frame) for stream, cell in updates],
            branch_cells=layout.branch_cells,
            weights=layout.weights,
            coefficients=torch.tensor(coefficients, dtype=torch.int64, device=device),
            keys=self._keys([(stream, cell.frame, cell.level) for stream, cell in updates])
            if noisy
            else None,
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
            base, first = stream.schedule.modulation_base, feed.frames[0].level
            branches = len(stream.weights)
            if feed.feeds_context:
                contexts += [base + model.context_row(first, stream.schedule.timesteps)] * branches
            frames += [base + model.frame_row(cell.level, first) for cell in feed.frames] * branches
        return np.concatenate(
            [
                np.repeat(np.asarray(contexts, np.int32), spec.context_tokens),
                np.repeat(np.asarray(frames, np.int32), spec.tokens_per_frame),
            ]
        )

    def _keys(self, updates: list[tuple[Stream, int, int]]) -> torch.Tensor:
        rows = [
            (stream.request.seed, stream.request.noise_stream, frame, PURPOSE_STEP, level)
            for stream, frame, level in updates
        ]
        return torch.tensor(rows, dtype=torch.int64, device=self._device).reshape(len(rows), 5)

    def _lay_out(self, work: Work) -> Layout:
        spec, device = self._spec, self._device
        views = _Views()
        context_pages: list[list[int]] = []
        for stream, feed in work:
            if feed.feeds_context:
                for branch, pages in enumerate(stream.pages.context):
                    context_pages.append(pages)
                    self._add_context_view(views, stream, feed, branch)

        frame_pages: list[list[int]] = []
        positions: list[int] = []
        branches = max(len(stream.weights) for stream, _ in work)
        branch_cells: list[list[int]] = [[] for _ in range(branches)]
        weights: list[list[float]] = [[] for _ in range(branches)]
        for stream, feed in work:
            for branch in range(branches):
                used = branch < len(stream.weights)
                start = len(frame_pages) if used else 0
                if used:
                    self._add_frame_views(views, stream, feed, branch)
                    frame_pages += [stream.pages.frames[branch][cell.frame] for cell in feed.frames]
                    positions += [cell.frame - feed.origin for cell in feed.frames]
                updated = [offset for offset, cell in enumerate(feed.frames) if cell.updates]
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
            table=FrameTable.build(views.query_tokens, views.pages, views.valid, views.seen).to(device),
            branch_cells=torch.tensor(branch_cells, dtype=torch.int64, device=device).reshape(
                branches, count
            ),
            weights=torch.tensor(weights, dtype=torch.float32, device=device).reshape(branches, count),
        )

    def _add_context_view(self, views: _Views, stream: Stream, feed: Feed, branch: int) -> None:
        pages, valid = list(stream.pages.context[branch]), list(self._context_valid)
        if self._spec.mask != "temporal_causal":
            frames = feed.visible(feed.frames[0].frame, feed.frames[-1].frame)
            pages, valid = pages + stream.pages.view(branch, frames), valid + self._frame_valid * len(frames)
        views.add([self._spec.context_tokens], pages, valid, [len(pages)])

    def _add_frame_views(self, views: _Views, stream: Stream, feed: Feed, branch: int) -> None:
        """Groups of frames whose views start alike; `seen` counts the pages up to each frame's own end."""
        per_frame, context = len(self._frame_valid), stream.pages.context[branch]
        frames = [cell.frame for cell in feed.frames]
        begin = 0
        while begin < len(frames):
            first = stream.policy.first_seen(frames[begin], feed.newest)
            end = begin + 1
            while end < len(frames) and stream.policy.first_seen(frames[end], feed.newest) == first:
                end += 1
            members = frames[begin:end]
            shown = feed.visible(first, members[-1])
            pages = context + stream.pages.view(branch, shown)
            valid = self._context_valid + self._frame_valid * len(shown)
            seen = [len(context) + bisect_right(shown, frame) * per_frame for frame in members]
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
