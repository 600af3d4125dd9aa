# SPDX-License-Identifier: Apache-2.0
"""Which cells a stream feeds next: its plan, its memory policy and the model's mask, brought together.

Pure Python. The plan says which frames change; the policy says whose keys and values are stale; the mask says
whether frames that change nothing must be fed all the same (design 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.memory.policy import MemoryPolicy
from ardiff_engine.plan import Kind, Plan


@dataclass(frozen=True, slots=True)
class FedFrame:
    """One frame of one pass. level: row of the timestep table, S + 1 for a frame that waits to start."""

    frame: int
    level: int
    updates: bool


@dataclass(frozen=True, slots=True)
class Feed:
    """One pass of one stream: frames in ascending order, the window they stand in, and whether the context is
    fed.
    """

    frames: tuple[FedFrame, ...]
    newest: int
    first_held: int
    origin: int
    feeds_context: bool


class Feeder:
    """Walks through the passes of one stream: `next()` says what to feed, `advance()` that it was done."""

    __slots__ = (
        "_cacheable",
        "_context_done",
        "_last_origin",
        "_plan",
        "_policy",
        "_prefill",
        "_prefix",
        "levels",
        "tick",
    )

    def __init__(self, plan: Plan, policy: MemoryPolicy, prefix: int, cacheable: bool) -> None:
        self._plan = plan
        self._policy = policy
        self._prefix = prefix
        self._cacheable = cacheable
        self._prefill = policy.prefill(prefix) if cacheable else []
        self._last_origin: int | None = None
        self._context_done = False
        self.tick = 0
        self.levels: dict[int, int] = {frame: plan.num_steps for frame in range(prefix)}

    @property
    def done(self) -> bool:
        return self._plan.num_ticks is not None and self.tick >= self._plan.num_ticks

    def next(self) -> Feed:
        if self._prefill:
            return self._prefill_feed(self._prefill[0])
        tick = self._plan.tick(self.tick)
        newest = self._plan.newest(self.tick)
        origin = self._policy.origin(newest)
        updates = {
            f: k
            for f, k, kind in zip(tick.frames, tick.levels, tick.kinds, strict=True)
            if kind is Kind.UPDATE
        }
        if not self._cacheable:
            return self._everything(updates, newest, origin)
        finished = self._plan.num_steps
        # The plan commits given frames in its first tick; here the policy does it, in chunks or as a slide.
        commits = [
            f
            for f, kind in zip(tick.frames, tick.kinds, strict=True)
            if kind is Kind.COMMIT and f >= self._prefix
        ]
        if origin != self._last_origin:
            commits = list(range(origin, min(updates)))
        commits = [f for f in commits if self._seen_later(f, newest)]
        fed = [FedFrame(f, finished, False) for f in commits] + [
            FedFrame(f, k, True) for f, k in updates.items()
        ]
        fed.sort(key=lambda cell: cell.frame)
        held = self._policy.first_held(fed[0].frame, newest)
        return Feed(tuple(fed), newest, held, origin, feeds_context=not self._context_done)

    def advance(self, feed: Feed) -> list[int]:
        """Record that `feed` has run; the frames that became clean by it."""
        self._context_done = True
        self._last_origin = feed.origin
        if self._prefill:
            self._prefill.pop(0)
            return []
        clean = []
        for cell in feed.frames:
            if cell.updates:
                self.levels[cell.frame] = cell.level + 1
                if cell.level + 1 == self._plan.num_steps:
                    clean.append(cell.frame)
        for frame in [f for f in self.levels if f < feed.first_held]:
            del self.levels[frame]
        self.tick += 1
        return clean

    def _prefill_feed(self, chunk: range) -> Feed:
        policy, newest = self._policy, chunk[-1]
        cells = tuple(FedFrame(f, self._plan.num_steps, False) for f in chunk)
        held = policy.first_held(chunk[0], newest)
        return Feed(cells, newest, held, policy.origin(newest), feeds_context=not self._context_done)

    def _everything(self, updates: dict[int, int], newest: int, origin: int) -> Feed:
        """All frames of the window, waiting ones included: under these masks each one changes the others."""
        end = origin + self._policy.max_frames(self._plan)
        if self._plan.num_frames is not None:
            end = min(end, self._plan.num_frames)
        waiting = self._plan.num_steps + 1
        cells = []
        for frame in range(origin, end):
            level = self.levels.get(frame, 0)
            cells.append(
                FedFrame(frame, waiting if level == 0 and frame not in updates else level, frame in updates)
            )
        return Feed(tuple(cells), newest, origin, origin, feeds_context=True)

    def _seen_later(self, frame: int, newest: int) -> bool:
        return frame < self._policy.sinks() or frame >= self._policy.first_seen(frame + 1, newest)
