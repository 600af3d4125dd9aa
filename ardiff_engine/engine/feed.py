# SPDX-License-Identifier: Apache-2.0
"""Which cells a stream feeds next: its plan, its memory policy and the model's mask, brought together.

Pure Python. The plan says which frames change; the policy says whose keys and values are stale; the mask says
whether frames that change nothing must be fed all the same (design 4.3). A finished frame is committed in the
first pass after it that someone reads it in, and again when the policy or a new condition makes its K/V
stale.
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
    """One pass of one stream.

    frames: in ascending order. newest: the youngest started frame. first_held: frames before it, sinks apart,
        are not needed any more. origin: the frame at position 0. floor: frames before it, sinks apart, are
        forgotten.
    sinks: leading frames that everyone sees. feeds_context: whether the context is part of the pass.
    """

    frames: tuple[FedFrame, ...]
    newest: int
    first_held: int
    origin: int
    floor: int
    sinks: range
    feeds_context: bool

    def visible(self, first: int, last: int) -> list[int]:
        """Frames that a view of first..last shows, sinks before it included, in order."""
        before = range(self.sinks.start, min(self.sinks.stop, first))
        return [*before, *(f for f in range(first, last + 1) if f >= self.floor or f in self.sinks)]

    def layout(self) -> tuple[object, ...]:
        """What page lists and positions depend on: all but the levels."""
        frames = tuple((cell.frame, cell.updates) for cell in self.frames)
        return frames, self.newest, self.origin, self.floor, self.sinks, self.feeds_context


class Feeder:
    """Walks through the passes of one stream: `next()` says what to feed, `advance()` that it was done."""

    def __init__(self, plan: Plan, policy: MemoryPolicy, cacheable: bool) -> None:
        self.plan = plan
        self.tick = 0
        self.ticks_total = 0
        self.floor = 0
        self.levels: dict[int, int] = {frame: plan.num_steps for frame in range(plan.prefix)}
        self._policy = policy
        self._cacheable = cacheable
        self._prefill = policy.prefill(plan.prefix) if cacheable else []
        self._committed: set[int] = set()
        self._sink_floor = 0
        self._last_origin: int | None = None
        self._context_done = False

    def copy(self) -> Feeder:
        other = Feeder.__new__(Feeder)
        other.__dict__.update(self.__dict__)
        other.levels, other._committed = dict(self.levels), set(self._committed)
        other._prefill = list(self._prefill)
        return other

    # --- the walk

    @property
    def done(self) -> bool:
        """True when the plan has no tick left."""
        return self.plan.num_ticks is not None and self.tick >= self.plan.num_ticks

    @property
    def oldest_unfinished(self) -> int:
        return self.plan.oldest_unfinished(self.tick)

    def next(self) -> Feed:
        if self._prefill:
            return self._prefill_feed(self._prefill[0])
        tick, newest = self.plan.tick(self.tick), self.plan.newest(self.tick)
        updates = {
            f: k
            for f, k, kind in zip(tick.frames, tick.levels, tick.kinds, strict=True)
            if kind is Kind.UPDATE
        }
        origin = self._origin(newest)
        if not self._cacheable:
            return self._everything(updates, newest, origin)
        fed = [
            *(FedFrame(f, self.plan.num_steps, False) for f in self._stale(min(updates), newest, origin)),
            *(FedFrame(f, k, True) for f, k in updates.items()),
        ]
        return self._feed(fed, newest, origin)

    def advance(self, feed: Feed) -> None:
        """Record that `feed` has run."""
        if feed.origin != self._last_origin:
            self._committed.clear()
        self._context_done, self._last_origin = True, feed.origin
        self._committed.update(cell.frame for cell in feed.frames if not cell.updates)
        if self._prefill:
            self._prefill.pop(0)
            return
        for cell in feed.frames:
            if cell.updates:
                self.levels[cell.frame] = cell.level + 1
        for frame in [f for f in self.levels if f < feed.first_held and f not in feed.sinks]:
            del self.levels[frame]
            self._committed.discard(frame)
        self.tick += 1
        self.ticks_total += 1

    # --- changes on the way

    def renew_context(self) -> None:
        """The context changed: feed it again. Stored K/V of frames stay as they are."""
        self._context_done = False

    def recommit(self) -> list[int]:
        """Commit again the clean frames, sinks included, that the unfinished ones see.

        Where K/V still carry frames before those (a rolling cache), these are not seen from now on.
        """
        oldest, newest = self.oldest_unfinished, self.plan.newest(self.tick)
        first = self._policy.first_held(oldest, newest)
        before = range(self._policy.first_seen(first, newest), first)
        if any(f not in self._sinks for f in before):
            self.floor = max(self.floor, first)
        self._committed.clear()
        return self._stale(oldest, newest, self._origin(newest)) if self._cacheable else []

    def forget(self) -> int:
        """Frames that are finished by now are seen by nobody any more; the first frame that still is."""
        self.floor = self._sink_floor = self.oldest_unfinished
        self._prefill = []
        return self.floor

    def missing(self, frame: int) -> list[int]:
        """Frames before `frame` whose K/V or clean latents going on from there would need anew."""
        if not self._cacheable:
            needed = range(self._policy.origin(frame), frame)
        else:
            needed = range(self._policy.first_held(frame, frame), frame)
        return [f for f in needed if self._remembered(f) and self.levels.get(f) != self.plan.num_steps]

    def restart(self, plan: Plan, *, from_scratch: bool) -> None:
        """Go on with another plan, whose given frames are the finished ones.

        from_scratch: nothing that is stored can be used; commit the given frames as those of a new video.
        """
        self.plan, self.tick = plan, 0
        self.levels = {f: k for f, k in self.levels.items() if f < plan.prefix}
        self._committed = {f for f in self._committed if f < plan.prefix}
        if from_scratch:
            self.levels = dict.fromkeys(range(plan.prefix), plan.num_steps)
            self._committed.clear()
            chunks = self._policy.prefill(plan.prefix) if self._cacheable else []
            self._prefill = [chunk for chunk in chunks if any(self._remembered(f) for f in chunk)]

    # --- private

    @property
    def _sinks(self) -> range:
        return range(self._sink_floor, max(self._sink_floor, self._policy.sinks()))

    def _origin(self, newest: int) -> int:
        """After `forget` positions start anew: the context is as near as to the first frames of a video."""
        return max(self._policy.origin(newest), self._sink_floor)

    def _remembered(self, frame: int) -> bool:
        return frame >= self.floor or frame in self._sinks

    def _stale(self, oldest: int, newest: int, origin: int) -> list[int]:
        """Finished frames whose K/V a later frame of this or a later pass reads and that are not stored."""
        committed = self._committed if origin == self._last_origin else set()
        first = self._policy.first_held(oldest, newest)
        frames = [*range(self._sinks.start, min(self._sinks.stop, first)), *range(first, oldest)]
        return [
            f for f in frames if f not in committed and self._remembered(f) and self._seen_later(f, newest)
        ]

    def _feed(self, fed: list[FedFrame], newest: int, origin: int) -> Feed:
        first = next((cell.frame for cell in fed if cell.frame not in self._sinks), fed[0].frame)
        held = self._policy.first_held(first, newest)
        feeds_context = not self._context_done
        return Feed(tuple(fed), newest, held, origin, self.floor, self._sinks, feeds_context)

    def _prefill_feed(self, chunk: range) -> Feed:
        newest = chunk[-1]
        fed = [FedFrame(f, self.plan.num_steps, False) for f in chunk if self._remembered(f)]
        return self._feed(fed, newest, self._origin(newest))

    def _everything(self, updates: dict[int, int], newest: int, origin: int) -> Feed:
        """All frames of the window, waiting ones included: under these masks each one changes the others."""
        end = origin + self._policy.max_frames(self.plan)
        if self.plan.num_frames is not None:
            end = min(end, self.plan.num_frames)
        waiting = self.plan.num_steps + 1
        cells = []
        for frame in range(max(origin, self.floor), end):
            level = self.levels.get(frame, 0)
            cells.append(
                FedFrame(frame, waiting if level == 0 and frame not in updates else level, frame in updates)
            )
        return Feed(tuple(cells), newest, origin, origin, self.floor, range(0), feeds_context=True)

    def _seen_later(self, frame: int, newest: int) -> bool:
        return frame in self._sinks or frame >= self._policy.first_seen(frame + 1, newest)
