# SPDX-License-Identifier: Apache-2.0
"""Which parts of old frames are worth keeping: those whose keys change most (Forcing-KV).

A frame's tokens are cut into segments of the same size, in raster order. A segment that hardly differs from
the same one a frame later is told again by that; one that differs holds what would be lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity

from ardiff_engine import ops
from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.memory.around import Around
from ardiff_engine.memory.made import Held, Made
from ardiff_engine.memory.page_pool import PagePool
from ardiff_engine.memory.per_layer import PerLayer
from ardiff_engine.memory.policy import require_size
from ardiff_engine.memory.view import Fed, Run, View, numbers, union, within
from ardiff_engine.models.spec import ModelSpec, Size
from ardiff_engine.plan import Frames, Now, Plan


def segment_similarity(keys: torch.Tensor, segments: int) -> torch.Tensor:
    """keys [F + 1, tokens, heads, head_dim] of frames in their order -> float32 [F, segments]: the mean over
    a segment's tokens of the cosine between a token and the same one a frame later, over all heads at once.

    TensorError: fewer than two frames, or tokens that are no multiple of the segments.
    """
    if keys.ndim != 4 or keys.shape[0] < 2 or segments < 1 or keys.shape[1] % segments:
        raise TensorError(
            f"segment_similarity: keys {list(keys.shape)} in {segments} segments; expected [F + 1, tokens, "
            "heads, head_dim] with tokens in whole segments"
        )
    flat = keys.to(torch.float32).flatten(2)
    return cosine_similarity(flat[:-1], flat[1:], dim=-1).unflatten(1, (segments, -1)).mean(dim=-1)


def least_similar(similarity: torch.Tensor, keep: int) -> torch.Tensor:
    """int64 [keep]: numbers of the least similar segments, over all frames in a row, ascending."""
    return similarity.flatten().topk(keep, largest=False).indices.sort().values


def take_segments(rows: torch.Tensor, kept: torch.Tensor, segments: int) -> torch.Tensor:
    """Of rows [F, tokens, ...] those of the kept segments: [keep * tokens / segments, ...]."""
    parts = rows.unflatten(1, (segments, -1)).flatten(0, 1)
    return parts[kept].flatten(0, 1)


@dataclass(frozen=True, slots=True)
class Choice:
    """Makes a frame of the segments that change most, by the keys of one layer and some of its kv heads. They
    keep the places where they were written, and all layers and heads have the same ones."""

    layer: int
    heads: tuple[int, ...]
    segments: int

    def __call__(
        self, pool: PagePool, spec: ModelSpec, size: Size | None, sources: list[Held], target: Held
    ) -> None:
        rows = torch.stack([own.rows for own in sources])  # [F + 1, tokens]
        pages = pool.k[self.layer].transpose(1, 2)  # [pages, page_rows, kv_heads, head_dim]
        keys = pages[rows // pool.page_rows, rows % pool.page_rows][:, :, list(self.heads)]
        kept = least_similar(segment_similarity(keys, self.segments), self.segments)
        chosen = take_segments(rows[:-1], kept, self.segments)[:, None]
        for planes in (pool.k, pool.v):
            ops.pool_pages_(planes, chosen, target.rows)


@dataclass(frozen=True, slots=True)
class Segments(Around):
    """memory: heads that see by different windows. seeing: the number of the window whose heads see, besides,
    one frame made of the segments that change most among the last `frames` frames before their block and
    behind its newest one. segments: of a frame, whose tokens must be a multiple. layer: whose keys decide.

    Blocks move one after the other.
    """

    memory: PerLayer
    seeing: int
    layer: int = 1
    frames: int = 3
    segments: int = 6

    def __post_init__(self) -> None:
        require_size("memory.Segments", "frames", self.frames, 1)
        require_size("memory.Segments", "segments", self.segments, 1)
        if not isinstance(self.memory, PerLayer) or not self._heads:
            raise ConfigError(
                f"memory.Segments({self.memory!r:.80}, seeing={self.seeing}, layer={self.layer}): give a "
                "PerLayer whose layer has heads that see by that window"
            )

    @property
    def _heads(self) -> tuple[int, ...]:
        """The kv heads whose keys decide."""
        if not 0 <= self.layer < len(self.memory.of_layer):
            return ()
        own = self.memory.of_layer[self.layer]
        return () if isinstance(own, int) else tuple([i for i, of in enumerate(own) if of == self.seeing])

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        self.memory.check(plan, spec)
        if plan.max_live > plan.longest_block:
            raise ConfigError(f"memory.Segments with {plan.rule}: let blocks move one after the other")
        if not self.memory.widest.stores(Fed(range(1), 1, 1, True)):
            raise ConfigError("memory.Segments: use windows whose blocks are stored clean")

    def most_frames(self, plan: Plan) -> int:
        # A chosen frame stays as long as the one whose number it has.
        frames = self.memory.most_frames(plan) + self.frames + 1
        return frames + frames // plan.longest_block + 2

    def view(self, fed: Fed, now: Now) -> View:
        return (*self._chosen(fed, now), *self.memory.view(fed, now))

    def views(self, fed: Fed, now: Now) -> tuple[View, ...]:
        chosen, views = self._chosen(fed, now), self.memory.views(fed, now)
        own = zip(self.memory.numbers, views, strict=True)
        return tuple([(*chosen, *view) if number == self.seeing else view for number, view in own])

    def made(self, fed: Fed, now: Now) -> tuple[Made, ...]:
        by = Choice(self.layer, self._heads, self.segments)
        sources = tuple([(frame, 0) for frame in self._candidates(fed, now)])
        return tuple([Made((run.first, run.copy), sources, 0, by) for run in self._chosen(fed, now)])

    def kept(self, oldest: range, now: Now) -> Frames:
        recent = within(now.started, oldest.start - self.frames - 1, now.newest + 1)
        return union(self.memory.kept(oldest, now), recent)

    def _candidates(self, fed: Fed, now: Now) -> list[int]:
        start = fed.block.start
        return numbers(within(now.started, max(0, start - self.frames - 1), start))

    def _chosen(self, fed: Fed, now: Now) -> View:
        """The frame of segments, under the number of the newest one; none of fewer than two frames."""
        candidates = self._candidates(fed, now)
        return (Run(candidates[-1], candidates[-1] + 1, 1),) if len(candidates) > 1 else ()
