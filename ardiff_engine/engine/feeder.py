# SPDX-License-Identifier: Apache-2.0
"""Which cells a stream feeds next: its plan, its memory policy and the model's mask, brought together.

Pure Python. The plan says which frames change; the policy says whose keys and values are stale; the mask says
whether frames that change nothing must be fed all the same (design 4.3). A finished frame is committed in the
first pass after it that someone reads it in, and again when the policy or a new condition makes its K/V
stale.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress

from ardiff_engine.engine.feed import Feed, Roster
from ardiff_engine.memory.policy import MemoryPolicy
from ardiff_engine.plan import Plan


@dataclass(frozen=True, slots=True, eq=False)
class _Steady:
    """From tick `begin` to before `end` of `plan` the solver moves the same frames. The roster is fed in all
    of them; if it `stores` K/V of other frames or of the context, in the first alone, and the next one
    follows from it."""

    plan: Plan
    begin: int
    end: int
    roster: Roster
    stores: bool


class Feeder:
    """Walks through the passes of one stream: `next()` says what to feed, `advance()` that it was done."""

    def __init__(self, plan: Plan, policy: MemoryPolicy, cacheable: bool) -> None:
        self.plan = plan
        self.tick = 0
        self.ticks_total = 0
        self.floor = 0
        self._levels: dict[int, int] = {frame: plan.num_steps for frame in range(plan.prefix)}
        self.moved: Feed | None = None
        """The last pass, if its frames have not been written down in `levels`."""
        self._policy = policy
        self._cacheable = cacheable
        self._prefill = policy.prefill(plan.prefix) if cacheable else []
        self._committed: set[int] = set()
        self._sink_floor = 0
        self._last_origin: int | None = None
        self._context_done = False
        self._steady: _Steady | None = None
        self._advanced: Roster | None = None

    def copy(self) -> Feeder:
        other = Feeder.__new__(Feeder)
        other.__dict__.update(self.__dict__)
        other._levels, other._committed = dict(self._levels), set(self._committed)
        other._prefill = list(self._prefill)
        return other

    # --- the walk

    @property
    def levels(self) -> dict[int, int]:
        """Solver steps that each frame which somebody may still see has finished."""
        # Written down only when somebody asks or the roster changes: steady passes would repeat it for all.
        moved = self.moved
        if moved is not None:
            risen = [level + 1 for level in moved.updated_levels]
            self._levels.update(zip(moved.roster.updated, risen, strict=True))
            self.moved = None
        return self._levels

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
        steady, tick = self._steady, self.tick
        if steady is None or steady.plan is not self.plan or not steady.begin <= tick < steady.end:
            feed = self._planned()
            stores = self._cacheable and (feed.roster.feeds_context or not all(feed.roster.updates))
            end = self.plan.steady_until(tick)
            self._steady = _Steady(self.plan, tick, end, feed.roster, stores)
            return feed
        if not steady.stores:
            return Feed(steady.roster, tick - steady.begin)
        if tick == steady.begin:
            return Feed(steady.roster)
        feed = self._without_stores(steady.roster, tick - steady.begin)
        self._steady = _Steady(self.plan, tick, steady.end, feed.roster, stores=False)
        return feed

    def _planned(self) -> Feed:
        tick, newest = self.plan.tick(self.tick), self.plan.newest(self.tick)
        updates = dict(zip(tick.frames, tick.levels, strict=True))
        origin = self._origin(newest)
        if not self._cacheable:
            return self._everything(updates, newest, origin)
        stale = self._stale(min(updates), newest, origin)
        levels = [self.plan.num_steps] * len(stale) + list(updates.values())
        return self._feed([*stale, *updates], levels, len(stale), newest, origin)

    @property
    def passes_ahead(self) -> int:
        """Passes that feed what `next` has said for this one, each one level higher, and that store and
        finish no frame."""
        steady = self._steady
        if self._prefill or steady is None or steady.stores or steady.plan is not self.plan:
            return 0
        finishing = steady.begin + self.plan.num_steps - 1 - steady.roster.highest
        return min(steady.end, finishing) - self.tick

    def advance(self, feed: Feed) -> None:
        """Record that `feed` has run."""
        self.take_up(feed.roster)
        if self._prefill:
            self._prefill.pop(0)
            return
        self.moved = feed
        self.tick += 1
        self.ticks_total += 1

    # --- changes on the way

    def renew_context(self) -> None:
        """The context changed: feed it again. Stored K/V of frames stay as they are."""
        self._steady = None
        self._context_done = False

    def recommit(self) -> list[int]:
        """Commit again the clean frames, sinks included, that the unfinished ones see.

        Where K/V still carry frames before those (a rolling cache), these are not seen from now on.
        """
        self._steady = None
        oldest, newest = self.oldest_unfinished, self.plan.newest(self.tick)
        first = self._policy.first_held(oldest, newest)
        before = range(self._policy.first_seen(first, newest), first)
        if any(f not in self._sinks for f in before):
            self.floor = max(self.floor, first)
        self._committed.clear()
        self._prefill = self._still_seen(self._prefill)
        return self._stale(oldest, newest, self._origin(newest)) if self._cacheable else []

    def forget(self) -> int:
        """Frames that are finished by now are seen by nobody any more; the first frame that still is."""
        self._steady = None
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

    def never_stored(self, prefix: int) -> bool:
        """Whether K/V of frames before the last block of `prefix` are still those of their last step.

        That is so where they finished together with it; what they see may have been given back by now.
        """
        seen = range(self._policy.first_held(prefix, prefix), self.plan.block(prefix - 1).start)
        return self._cacheable and any(f not in self._committed for f in seen if self._remembered(f))

    def restart(self, plan: Plan, *, from_scratch: bool) -> None:
        """Go on with another plan, whose given frames are the finished ones.

        from_scratch: nothing that is stored can be used; commit the given frames as those of a new video.
        """
        self._steady = None
        self.plan, self.tick = plan, 0
        self._levels = {f: k for f, k in self.levels.items() if f < plan.prefix}
        self._committed = {f for f in self._committed if f < plan.prefix}
        if from_scratch:
            self._levels = dict.fromkeys(range(plan.prefix), plan.num_steps)
            self._committed.clear()
            self._prefill = self._still_seen(self._policy.prefill(plan.prefix) if self._cacheable else [])

    # --- private

    def take_up(self, roster: Roster) -> None:
        """Note what the first pass with this roster has stored, and drop what nobody sees any more.

        Part of `advance`. Where that is interrupted it is done again: the pass with it, or, after a run of
        passes, this alone.
        """
        if roster is self._advanced:
            return
        if roster.origin != self._last_origin:
            self._committed.clear()
        self._context_done, self._last_origin = True, roster.origin
        self._committed.update(set(roster.frames).difference(roster.updated))
        levels, first, sinks = self.levels, roster.first_held, roster.sinks
        for frame in () if self._prefill else [f for f in levels if f < first and f not in sinks]:
            del levels[frame]
            self._committed.discard(frame)
        self._advanced = roster

    @property
    def _sinks(self) -> range:
        return range(self._sink_floor, max(self._sink_floor, self._policy.sinks()))

    def _origin(self, newest: int) -> int:
        """After `forget` positions start anew: the context is as near as to the first frames of a video."""
        return max(self._policy.origin(newest), self._sink_floor)

    def _remembered(self, frame: int) -> bool:
        return frame >= self.floor or frame in self._sinks

    def _still_seen(self, chunks: list[range]) -> list[range]:
        return [chunk for chunk in chunks if any(self._remembered(f) for f in chunk)]

    def _stale(self, oldest: int, newest: int, origin: int) -> list[int]:
        """Finished frames whose K/V a later frame of this or a later pass reads and that are not stored."""
        committed = self._committed if origin == self._last_origin else set()
        sinks, first = self._sinks, self._policy.first_held(oldest, newest)
        frames = [*range(sinks.start, min(sinks.stop, first)), *range(first, oldest)]
        return [
            f for f in frames if f not in committed and self._remembered(f) and self._seen_later(f, newest)
        ]

    def _feed(self, frames: list[int], levels: list[int], committed: int, newest: int, origin: int) -> Feed:
        """The first `committed` frames are fed for their K/V alone."""
        sinks = self._sinks
        first = next((frame for frame in frames if frame not in sinks), frames[0])
        roster = Roster(
            frames=tuple(frames),
            updates=(False,) * committed + (True,) * (len(frames) - committed),
            levels=tuple(levels),
            newest=newest,
            first_held=self._policy.first_held(first, newest),
            origin=origin,
            floor=self.floor,
            sinks=sinks,
            feeds_context=not self._context_done,
        )
        return Feed(roster)

    def _without_stores(self, roster: Roster, passed: int) -> Feed:
        """As planned anew, once what the roster stores is stored: no frame has started or finished since."""
        levels = [level + passed for level in compress(roster.levels, roster.updates)]
        return self._feed(list(roster.updated), levels, 0, roster.newest, roster.origin)

    def _prefill_feed(self, chunk: range) -> Feed:
        newest = chunk[-1]
        frames = [f for f in chunk if self._remembered(f)]
        levels = [self.plan.num_steps] * len(frames)
        return self._feed(frames, levels, len(frames), newest, self._origin(newest))

    def _everything(self, updates: dict[int, int], newest: int, origin: int) -> Feed:
        """All frames of the window, waiting ones included: under these masks each one changes the others."""
        end = origin + self._policy.max_frames(self.plan)
        if self.plan.num_frames is not None:
            end = min(end, self.plan.num_frames)
        waiting = self.plan.num_steps + 1
        frames = range(max(origin, self.floor), end)
        levels = {frame: self.levels.get(frame, 0) for frame in frames}
        roster = Roster(
            frames=tuple(frames),
            updates=tuple(frame in updates for frame in frames),
            levels=tuple(waiting if k == 0 and f not in updates else k for f, k in levels.items()),
            newest=newest,
            first_held=origin,
            origin=origin,
            floor=self.floor,
            sinks=range(0),
            feeds_context=True,
        )
        return Feed(roster)

    def _seen_later(self, frame: int, newest: int) -> bool:
        return frame in self._sinks or frame >= self._policy.first_seen(frame + 1, newest)
