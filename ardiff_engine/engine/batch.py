# SPDX-License-Identifier: Apache-2.0
"""One pass over all running streams: their feeds, packed into the tensors that the model and the solver take.

Token order: the contexts that are fed, then the frames, stream by stream and branch by branch. Frames whose
views start
at the same frame form one group: each sees a prefix of the group's page list.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from ardiff_engine.diffusion.noise import PURPOSE_STEP
from ardiff_engine.engine.feed import Feed
from ardiff_engine.engine.stream import Stream
from ardiff_engine.memory.page_pool import PagePool
from ardiff_engine.memory.policy import MemoryPolicy
from ardiff_engine.models.ar_diffusion import ARDiffusionTransformer
from ardiff_engine.models.cell_batch import CellBatch
from ardiff_engine.ops.frame_table import FrameTable


@dataclass(frozen=True, slots=True)
class Batch:
    """cells: for the model. x [N, L, C]; condition [K, context_tokens, context_dim] or None.

    The U updates: `updates` names stream and frame, `branch_cells` int64 [B, U] the cell of each guidance
        branch, `weights` float32 [B, U] its share (0 where a stream has fewer branches), `levels` int64 [U],
        `keys` int64 [U, 5] of step noise.
    """

    cells: CellBatch
    x: torch.Tensor
    condition: torch.Tensor | None
    updates: list[tuple[Stream, int]]
    branch_cells: torch.Tensor
    weights: torch.Tensor
    levels: torch.Tensor
    keys: torch.Tensor


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


class Packer:
    """Packs feeds. Holds only what stays the same from pass to pass."""

    def __init__(
        self, model: ARDiffusionTransformer, pool: PagePool, policy: MemoryPolicy, num_steps: int
    ) -> None:
        self._model = model
        self._pool = pool
        self._policy = policy
        self._num_steps = num_steps
        spec = model.spec
        self._spec = spec
        self._frame_valid = _valid_rows(spec.tokens_per_frame, pool.page_rows)
        self._context_valid = _valid_rows(spec.context_tokens, pool.page_rows)
        self._device = pool.k.device

    def pack(self, work: list[tuple[Stream, Feed]]) -> Batch:
        spec = self._spec
        views = _Views()
        context_pages: list[list[int]] = []
        context_rows: list[int] = []
        conditions: list[torch.Tensor] = []
        for stream, feed in work:
            if feed.feeds_context:
                row = self._model.context_row(feed.frames[0].level, self._num_steps + 2)
                for branch in range(len(stream.weights)):
                    context_pages.append(stream.context_pages[branch])
                    context_rows.append(row)
                    self._add_context_view(views, stream, feed, branch)
                conditions.append(stream.conditions)

        frame_pages: list[list[int]] = []
        frame_rows: list[int] = []
        positions: list[int] = []
        latents: list[torch.Tensor] = []
        updates: list[tuple[Stream, int]] = []
        levels: list[int] = []
        keys: list[tuple[int, int, int, int, int]] = []
        branches = max(len(stream.weights) for stream, _ in work)
        branch_cells: list[list[int]] = [[] for _ in range(branches)]
        weights: list[list[float]] = [[] for _ in range(branches)]
        for stream, feed in work:
            first = feed.frames[0].level
            for branch in range(branches):
                used = branch < len(stream.weights)
                start = len(frame_pages) if used else 0
                if used:
                    self._add_frame_views(views, stream, feed, branch)
                for offset, cell in enumerate(feed.frames):
                    if used:
                        frame_pages.append(stream.frame_pages[branch][cell.frame])
                        frame_rows.append(self._model.frame_row(cell.level, first))
                        positions.append(cell.frame - feed.origin)
                        latents.append(stream.latents[cell.frame])
                    if cell.updates:
                        branch_cells[branch].append(start + offset)
                        weights[branch].append(stream.weights[branch] if used else 0.0)
            for cell in feed.frames:
                if cell.updates:
                    updates.append((stream, cell.frame))
                    levels.append(cell.level)
                    keys.append(
                        (
                            stream.request.seed,
                            stream.request.noise_stream,
                            cell.frame,
                            PURPOSE_STEP,
                            cell.level,
                        )
                    )

        slots = np.concatenate(
            [self._slots(context_pages, spec.context_tokens), self._slots(frame_pages, spec.tokens_per_frame)]
        )
        rows = np.concatenate(
            [
                np.repeat(np.asarray(context_rows, np.int32), spec.context_tokens),
                np.repeat(np.asarray(frame_rows, np.int32), spec.tokens_per_frame),
            ]
        )
        device = self._device
        cells = CellBatch(
            num_contexts=len(context_pages),
            slots=torch.from_numpy(slots).to(device),
            frame_positions=torch.tensor(positions, dtype=torch.int64, device=device),
            frame_ids=torch.from_numpy(rows).to(device),
            table=FrameTable.build(views.query_tokens, views.pages, views.valid, views.seen).to(device),
            k_pages=self._pool.k,
            v_pages=self._pool.v,
        )
        count = len(updates)
        return Batch(
            cells=cells,
            x=torch.stack(latents),
            condition=torch.cat(conditions) if conditions else None,
            updates=updates,
            branch_cells=torch.tensor(branch_cells, dtype=torch.int64, device=device).reshape(
                branches, count
            ),
            weights=torch.tensor(weights, dtype=torch.float32, device=device).reshape(branches, count),
            levels=torch.tensor(levels, dtype=torch.int64, device=device),
            keys=torch.tensor(keys, dtype=torch.int64, device=device).reshape(count, 5),
        )

    def _add_context_view(self, views: _Views, stream: Stream, feed: Feed, branch: int) -> None:
        pages, valid = list(stream.context_pages[branch]), list(self._context_valid)
        if self._spec.mask != "temporal_causal":
            video = stream.view(branch, feed.frames[0].frame, feed.frames[-1].frame)
            pages, valid = pages + video, valid + self._frame_valid * (len(video) // len(self._frame_valid))
        views.add([self._spec.context_tokens], pages, valid, [len(pages)])

    def _add_frame_views(self, views: _Views, stream: Stream, feed: Feed, branch: int) -> None:
        """Groups of frames whose views start alike; `seen` counts pages, so that each frame ends at its
        own.
        """
        per_frame, context = len(self._frame_valid), stream.context_pages[branch]
        frames = [cell.frame for cell in feed.frames]
        begin = 0
        while begin < len(frames):
            first = self._policy.first_seen(frames[begin], feed.newest)
            end = begin + 1
            while end < len(frames) and self._policy.first_seen(frames[end], feed.newest) == first:
                end += 1
            members = frames[begin:end]
            pages = context + stream.view(branch, first, members[-1])
            valid = self._context_valid + self._frame_valid * ((len(pages) - len(context)) // per_frame)
            before = len(context) + stream.sinks_before(first) * per_frame
            seen = [before + (frame - first + 1) * per_frame for frame in members]
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
