# SPDX-License-Identifier: Apache-2.0
"""Which cells a stream feeds next: its plan, its memory policy and what its network forgets.

Pure Python. The plan says which frames move; the policy says what they see, and whose keys and values are to
be stored again; where a network does not forget, frames that change nothing are fed all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ardiff_engine.engine.feed import PER_CELL, Feed, Roster, given_chunks
from ardiff_engine.memory.policy import MemoryPolicy
from ardiff_engine.memory.view import (
    Fed,
    Run,
    View,
    agree,
    forget,
    frames_in,
    numbers,
    outside,
    own_run,
    union,
    within,
    without,
)
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Frames, Now, Plan


@dataclass(frozen=True, slots=True, eq=False)
class _Steady:
    """From tick `begin` to before `end` of `plan` the solver moves the same frames: those of the roster."""

    plan: Plan
    begin: int
    end: int
    roster: Roster


class Feeder:
    """Walks through the passes of one stream: `next()` says what to feed, `advance()` that it was done.

    floor: frames before it may have been forgotten.
    """

    def __init__(self, plan: Plan, policy: MemoryPolicy, spec: ModelSpec) -> None:
        self.plan = plan
        self.tick = self.ticks_total = 0
        self._levels: dict[int, int] = {frame: plan.steps(frame) for frame in range(plan.prefix)}
        self.moved: Feed | None = None  # the last pass, if its frames are not written down in `levels`
        self._policy, spec = policy, policy.network(spec)
        self._forgets = spec.forgets
        self._sees_later = spec.frames_see_later
        self._has_context = spec.context_tokens > 0
        self._prefill = given_chunks(plan, self._policy.chunk if self._forgets else 0)
        self._stored: set[int] = set()
        self._renewed = -1
        self._forgotten: Frames = ()
        self._base = 0
        self._kept: Frames = ()
        self._context_done = self._stores_first = False
        self._steady: _Steady | None = None
        self._advanced: Roster | None = None

    def copy(self) -> Feeder:
        other = Feeder.__new__(Feeder)
        other.__dict__.update(self.__dict__)
        other._levels, other._stored = dict(self._levels), set(self._stored)
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
            self._levels.update(zip(moved.first.updated, risen, strict=True))
            self.moved = None
        return self._levels

    @property
    def floor(self) -> int:
        return self._forgotten[-1].stop if self._forgotten else 0

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
            self._steady = None
            feed = self._planned()
            if feed.first.updated:
                begins = self.plan.block(feed.first.updated[0]).start
                anew = self._policy.by_level or begins < self.plan.prefix
                end = tick + 1 if anew else self.plan.steady_until(tick)
                self._steady = _Steady(self.plan, tick, end, feed.first)
            return feed
        return Feed(steady.roster, tick - steady.begin)

    @property
    def passes_ahead(self) -> int:
        """Passes from this one on, for which `next` was asked, that move the same, each one level higher."""
        steady = self._steady
        if self._prefill or steady is None:
            return 1
        return min(steady.end, steady.begin + steady.roster.passes_left) - self.tick

    def due(self, feed: Feed) -> range:
        """The frames that a reader gets once `feed`, the next one of this walk, has run: those that are
        finished then and come after finished ones alone. Others wait for the frames before them."""
        if self._prefill or self._steady is None or feed.passed + 1 < feed.first.passes_left:
            return range(0)
        oldest = self.plan.oldest_unfinished
        return range(oldest(self.tick), oldest(self._steady.begin + feed.passed + 1))

    def unstored(self) -> list[tuple[Fed, View]]:
        """Blocks whose K/V the next tick would store, whatever else it does, and what they see."""
        now = self.plan.now(self.tick)
        feds = [self._fed(block, stores=True) for block in self._to_store(now, self._kept_by_policy(now))]
        return self._views(feds, now)

    def advance(self, feed: Feed, passes: int = 1) -> None:
        """Record that `passes` have run, the last one over `feed`."""
        self._take_up(feed.first)
        if self._prefill:
            self._prefill.pop(0)
            return
        if not feed.first.updated:
            return
        self.moved = feed
        self.tick += passes
        self.ticks_total += passes

    def _take_up(self, roster: Roster) -> None:
        """Note what the first pass with this roster has stored, and drop what nobody sees any more."""
        if roster is self._advanced:
            return
        self._stored.difference_update(self._stale(roster.kept))
        self._context_done, self._kept = True, roster.kept
        cells = zip(roster.frames, roster.updates, strict=True)
        self._stored.update([frame for frame, updates in cells if not updates])
        self._stored.difference_update(roster.updated)
        levels, kept = self.levels, roster.kept
        for frame in () if self._prefill else outside(kept, levels):
            del levels[frame]
            self._stored.discard(frame)
        self._advanced = roster

    # --- changes on the way

    def renew_context(self) -> None:
        """The context changed: feed it again. Stored K/V of frames stay as they are."""
        self._steady = None
        self._context_done = self._stores_first = False

    def store_first(self) -> bool:
        """Whether finished frames wait for their K/V: then the next pass stores them and moves nothing."""
        self._steady = None
        begun = self._forgets and self._advanced is not None and not self._prefill
        self._stores_first = begun and bool(self.unstored())
        return self._stores_first

    def recommit(self) -> list[int]:
        """Store again the clean frames that the policy calls stale when the condition changes.

        Frames before those that are kept, which K/V still carry (a rolling cache), are not seen again.
        """
        self._steady = None
        now = self.plan.now(self.tick)
        kept = self._kept_by_policy(now)
        self._stored.difference_update(numbers(self._policy.stale("prompt", kept)))
        blocks = list(self._to_store(now, kept)) if self._forgets else []
        anew = union(kept, *[(block,) for block in blocks])
        views = [view for _, view in self._views([self._fed(b, stores=True) for b in blocks], now)]
        carried = without(frames_in(views), anew)
        if carried:
            self._forgotten = union(self._forgotten, without((range(carried[-1].stop),), anew))
        self._prefill = self._still_seen(self._prefill)
        return [frame for block in blocks for frame in block]

    def go_on_with(self, policy: MemoryPolicy) -> None:
        self._steady, self._policy = None, policy

    def forget(self) -> int:
        """Frames that are finished by now are seen by nobody any more; the first frame that still is.

        Positions start anew, near the context, unless a frame in flight waits for its turn where it is.
        """
        self._steady, self._prefill, oldest = None, [], self.oldest_unfinished
        self._base = oldest if not self._forgets or self.plan.all_move(self.tick) else self._base
        self._forgotten = (range(oldest),) if oldest else ()
        return oldest

    def missing(self, plan: Plan) -> list[int]:
        """Given frames of `plan` whose K/V or clean latents going on with it would need anew."""
        now = plan.now(0)
        needed = numbers(within(self._kept_by_policy(now, plan), 0, plan.prefix))
        gone = [f for f in needed if self.levels.get(f) != plan.steps(f)]
        if gone or not self._forgets:
            return gone
        stored = self._stored.union(*self._prefill)
        feds = [self._fed(b, stores=True) for b in self._blocks([f for f in needed if f not in stored])]
        due = [fed for fed in feds if self._policy.stores(fed)]
        here = stored.union(*[fed.block for fed in due]).intersection(self.levels)
        return [f for f in numbers(frames_in([view for _, view in self._views(due, now)])) if f not in here]

    def restart(self, plan: Plan, anew: int = 0) -> None:
        """Go on with another plan, whose given frames are finished; K/V of the last `anew` are not stored."""
        self._steady = None
        self.plan, self.tick, self._renewed = plan, 0, -1
        made = plan.prefix - anew
        self._prefill = [chunk for chunk in self._prefill if chunk.stop <= made]
        self._levels = {f: k for f, k in self.levels.items() if f < made}
        self._levels |= {f: plan.steps(f) for f in range(made, plan.prefix)}
        self._stored = {f for f in self._stored if f < made}
        if anew and self._forgets:
            now = plan.now(0)
            due = self._prefill or list(self._to_store(now, within(self._kept_by_policy(now), 0, made)))
            chunks = [*(due if made else []), *given_chunks(plan, self._policy.chunk, made)]
            self._prefill = self._still_seen(chunks)

    # --- private

    def _planned(self) -> Feed:
        """What the plan's tick moves, and before it what is to be stored: in a pass before, where their views
        do not agree."""
        tick, now = self.plan.tick(self.tick), self.plan.now(self.tick)
        levels = dict(zip(tick.frames, tick.levels, strict=True))
        if not self._forgets:
            return self._everything(levels, now)
        if tick.index != self._renewed:
            for block in self._blocks(f for f, level in levels.items() if level == 0):
                self._policy = self._policy.begun(block, self._remembered(now))
                self._stored.difference_update(numbers(self._policy.renewed(block)))
            self._renewed = tick.index
        kept = self._kept_by_policy(now)
        stores = [self._fed(block, stores=True) for block in self._to_store(now, kept)]
        moves = [self._fed(block, level=levels[block[-1]]) for block in self._blocks(tick.frames)]
        seen = self._views(stores + moves, now)
        if stores and (self._stores_first or not agree([view for _, view in seen])):
            del seen[len(stores) :]
            while not agree([view for _, view in seen]):
                seen.pop()
        return self._feed(seen, now, union(kept, now.unfinished))

    def _fed(self, block: range, *, level: int | None = None, stores: bool = False) -> Fed:
        own = self.levels.get(block[-1], 0) if level is None else level
        return Fed(block, own, self.plan.steps(block[-1]), stores)

    def _feed(self, seen: list[tuple[Fed, View]], now: Now, kept: Frames) -> Feed:
        copy_of, track_of = self._policy.copy, self.plan.track
        cells: list[tuple[int, bool, int, int, int, View, int, int]] = []
        for fed, view in seen:
            block, copy = fed.block, copy_of(fed)
            shift = own_run(view, block, copy).shift
            track = track_of(block[-1])
            for frame in block:
                # A given frame of a block that moves is fed clean beside the others.
                given = not fed.stores and frame < self.plan.prefix
                own = not (fed.stores or given), fed.steps if given else fed.level
                cells.append((frame, *own, fed.steps, track, view, copy, frame + shift))
        columns: dict[str, Any] = dict(zip(PER_CELL, zip(*cells, strict=True), strict=False))
        columns["layers"] = self._layers([fed for fed, _ in seen], now)
        kept = union(kept, frames_in([view for _, view in seen]))
        context = self._has_context and not self._context_done
        once = context or not all(columns["updates"])
        return Feed(Roster(**columns, kept=kept, feeds_context=context, once=once))

    def _layers(self, feds: list[Fed], now: Now) -> tuple[tuple[View, ...], ...]:
        if not self._policy.by_layer:
            return ()
        now = self._remembered(now)
        views = [tuple(map(self._standing, self._policy.views(fed, now))) for fed in feds]
        return tuple([own for fed, own in zip(feds, views, strict=True) for _ in fed.block])

    def _prefill_feed(self, chunk: range) -> Feed:
        started = (range(chunk.stop),)
        finished = (range(chunk.start),) if chunk.start else ()
        now = Now(started, (chunk,), finished)
        kept = self._kept_by_policy(now)
        remembered = numbers(without((chunk,), self._forgotten))
        feds = [self._fed(block, stores=True) for block in self._blocks(remembered)]
        waiting = (range(chunk.stop, self.plan.prefix),) if chunk.stop < self.plan.prefix else ()
        return self._feed(self._views(feds, now), now, union(kept, waiting))

    def _everything(self, moved: dict[int, int], now: Now) -> Feed:
        """All frames of the window, waiting ones included: in such a network each one changes the others."""
        plan = self.plan
        window = self._policy.kept(plan.block(now.oldest_unfinished), now)
        start = max(window[0].start, self._base)
        end = start + self._policy.most_frames(plan)
        if plan.num_frames is not None:
            end = min(end, plan.num_frames)
        frames = range(max(start, self.floor), end)
        (_, shown), *_ = self._views([self._fed(plan.block(now.newest))], now)
        shift = shown[0].shift
        own = {frame: self.levels.get(frame, 0) for frame in frames}
        steps = [plan.steps(frame) for frame in frames]
        stops = [end if self._sees_later else plan.block(frame).stop for frame in frames]
        return Feed(
            Roster(
                frames=tuple(frames),
                updates=tuple(frame in moved for frame in frames),
                levels=tuple(
                    most + 1 if own[f] == 0 and f not in moved else own[f]
                    for f, most in zip(frames, steps, strict=True)
                ),
                steps=tuple(steps),
                tracks=tuple(map(plan.track, frames)),
                views=tuple([(Run(frames.start, stop, 0, shift),) for stop in stops]),
                copies=(0,) * len(frames),
                positions=tuple([frame + shift for frame in frames]),
                kept=(frames,),
                feeds_context=self._has_context,
            )
        )

    def _views(self, feds: list[Fed], now: Now) -> list[tuple[Fed, View]]:
        """The blocks, each with what it sees."""
        now, view, as_seen = self._remembered(now), self._policy.view, not (self._forgotten or self._base)
        return [(fed, view(fed, now) if as_seen else self._standing(view(fed, now))) for fed in feds]

    def _remembered(self, now: Now) -> Now:
        gone = self._forgotten
        return Now(without(now.started, gone), now.unfinished, without(now.finished, gone)) if gone else now

    def _standing(self, view: View) -> View:
        """What a memory shows, less what was forgotten, counted from where positions began anew."""
        view = forget(view, self._forgotten)
        back = self._base + view[-1].shift
        if not self._base or back <= 0:
            return view
        return tuple([run._replace(shift=run.shift - back) for run in view])

    def _kept_by_policy(self, now: Now, plan: Plan | None = None) -> Frames:
        oldest = now.oldest_unfinished
        if plan is None:
            plan, oldest = self.plan, max(0, oldest - self._policy.back)
        if plan.num_frames is not None:
            oldest = min(oldest, plan.num_frames - 1)
        return without(self._policy.kept(plan.block(oldest), now), self._forgotten)

    def _stale(self, kept: Frames) -> list[int]:
        """Frames whose K/V are no longer right because a frame left that they may carry."""
        if kept == self._kept or not without(self._kept, kept):
            return []
        return numbers(self._policy.stale("slide", kept))

    def _to_store(self, now: Now, kept: Frames) -> Iterator[range]:
        """Blocks whose K/V later ones read, in this or a later pass, and are not stored as they now are."""
        stale = self._stale(union(kept, now.unfinished))
        stored = self._stored.difference(stale) if stale else self._stored
        levels, stores = self.levels, self._policy.stores
        due = [f for run in kept for f in run if f not in stored and levels.get(f)]
        for block in self._blocks(due):
            if stores(self._fed(block, stores=True)) and all([f in levels for f in block]):
                yield block

    def _blocks(self, frames: Iterable[int]) -> Iterator[range]:
        """The blocks that the frames, in ascending order, are in."""
        block = range(0)
        for frame in frames:
            if frame not in block:
                block = self.plan.block(frame)
                yield block

    def _still_seen(self, chunks: list[range]) -> list[range]:
        return [chunk for chunk in chunks if without((chunk,), self._forgotten)]
