# SPDX-License-Identifier: Apache-2.0
"""Which cells a stream feeds next: its plan, its memory policy and what its network forgets.

Pure Python. The plan says which frames move; the policy says what they see, and whose keys and values are to
be stored again; where a network does not forget, frames that change nothing are fed all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress
from operator import not_
from typing import Any

from ardiff_engine.engine.feed import PER_CELL, Feed, Roster, SteadyRuns
from ardiff_engine.memory.policy import MemoryPolicy
from ardiff_engine.memory.progress import Progress
from ardiff_engine.memory.view import (
    Fed,
    Run,
    View,
    after,
    agree,
    before,
    counted_from,
    forget,
    frames_in,
    numbers,
    own_run,
    union,
    within,
    without,
)
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Frames, Now, Plan


class Feeder:
    """Walks through the passes of one stream: `next()` says what to feed, `advance()` that it was done.

    floor: frames before it may have been forgotten.
    """

    def __init__(self, plan: Plan, policy: MemoryPolicy, spec: ModelSpec) -> None:
        self.plan = plan
        self.tick = self.ticks_total = 0
        self._progress = Progress({frame: plan.steps(frame) for frame in range(plan.prefix)}, set(), ())
        # What steady passes change is noted when somebody asks. Until then `_progress` lacks the roster that
        # was fed from where `_late` says, and the levels to which `_moved`, the last pass, raised frames.
        self._late: tuple[Progress, Feed] | None = None
        self._moved: Feed | None = None
        self._policy, spec = policy, policy.network(spec)
        self._forgets = spec.forgets
        self._sees_later = spec.frames_see_later
        self._has_context = spec.context_tokens > 0
        self._prefill = plan.given_chunks(self._policy.chunk if self._forgets else 0)
        self._renewed = -1
        self._forgotten: Frames = ()
        self._base = self._shift = 0
        self._context_done = self._stores_first = False
        self._runs = SteadyRuns()
        self._advanced: Feed | None = None

    def copy(self) -> Feeder:
        other = Feeder.__new__(Feeder)
        other.__dict__.update(self.__dict__)
        other._progress, other._late, other._moved = self._noted().copy(), None, None
        other._prefill, other._runs = list(self._prefill), self._runs.copy()
        return other

    # --- the walk

    @property
    def levels(self) -> dict[int, int]:
        """Solver steps that each frame which somebody may still see has finished."""
        return self._noted().levels

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
        slides = self._policy.slides_after is not None
        steady = self._runs.at(self.tick, self.plan, slides, self._begun)
        return Feed(steady.roster, self.tick - steady.begin, steady.by)

    @property
    def passes_ahead(self) -> int:
        """Passes from this one on, for which `next` was asked, that move the same, each one level higher."""
        steady = self._runs.last
        if self._prefill or steady is None:
            return 1
        return min(steady.end, steady.begin + steady.roster.passes_left) - self.tick

    def due(self, feed: Feed) -> range:
        """The frames that a reader gets once `feed`, the next one of this walk, has run. Others wait for the
        frames before them."""
        steady = self._runs.last
        if self._prefill or steady is None or feed.passed + 1 < feed.first.passes_left:
            return range(0)
        return steady.finishes

    def unstored(self) -> list[tuple[Fed, View]]:
        """Blocks whose K/V the next tick would store, whatever else it does, and what they see."""
        return self._views(self._storing(now := self.plan.now(self.tick)), now)

    def advance(self, feed: Feed, passes: int = 1) -> None:
        """Record that `passes` have run, the last one over `feed`."""
        if not feed.is_of(self._advanced):
            self._advanced, run = feed, self._runs.last
            if feed.by and run is not None:
                self._late, self._moved = (run.began, feed), None
            else:
                self._noted()
                self._note(feed)
        if self._prefill:
            self._prefill.pop(0)
            return
        if not feed.first.updated:
            return
        self._moved = feed
        self.tick += passes
        self.ticks_total += passes

    def _note(self, feed: Feed) -> None:
        """What the first pass with its roster changes."""
        roster, kept = feed.first, feed.kept
        stored = compress(feed.numbered(roster.frames), map(not_, roster.updates))
        self._progress = self._progress.fed(stored, feed.updated, self._stale(kept), kept)
        if not self._prefill:
            self._progress.forget_unseen()
        self._context_done = True

    def _noted(self) -> Progress:
        """Where the walk stands, with all that has run."""
        if self._late is not None:
            (began, feed), self._late = self._late, None
            self._progress = began.moved_on(feed.by, feed.first.fixed)
            self._note(feed)
        if self._moved is not None:
            risen = [level + 1 for level in self._moved.updated_levels]
            self._progress.levels.update(zip(self._moved.updated, risen, strict=True))
            self._moved = None
        return self._progress

    def _interrupted(self) -> None:
        """Something comes between: nothing repeats itself any more."""
        self._noted()
        self._runs = SteadyRuns()

    # --- changes on the way

    def renew_context(self) -> None:
        """The context changed: feed it again. Stored K/V of frames stay as they are."""
        self._interrupted()
        self._context_done = self._stores_first = False

    def store_first(self) -> bool:
        """Whether finished frames wait for their K/V: then the next pass stores them and moves nothing."""
        self._interrupted()
        begun = self._forgets and self._advanced is not None and not self._prefill and not self.done
        self._stores_first = begun and bool(self._storing(self._before_tick()))
        return self._stores_first

    def recommit(self) -> list[int]:
        """Store again the clean frames that the policy calls stale when the condition changes.

        Frames before those that are kept, which K/V still carry (a rolling cache), are not seen again.
        """
        self._interrupted()
        now = self.plan.now(self.tick)
        kept = self._kept_by_policy(now)
        self._noted().stored.difference_update(numbers(self._policy.stale("prompt", kept)))
        blocks = list(self._to_store(now, kept)) if self._forgets else []
        anew = union(kept, *[(block,) for block in blocks])
        views = [view for _, view in self._views([self._fed(b, stores=True) for b in blocks], now)]
        if carried := without(frames_in(views), anew):
            self._forgotten = union(self._forgotten, without((range(carried[-1].stop),), anew))
        self._prefill = [chunk for chunk in self._prefill if without((chunk,), self._forgotten)]
        return [frame for block in blocks for frame in block]

    def extend(self, plan: Plan) -> None:
        """Go on with a longer plan, whose ticks until now are those of this one."""
        self._interrupted()
        self.plan = plan

    def go_on_with(self, policy: MemoryPolicy) -> None:
        self._interrupted()
        self._policy = policy

    def forget(self) -> int:
        """Frames that are finished by now are seen by nobody any more; the first frame that still is.

        Positions start anew, near the context, unless K/V that stay in sight were written where they are: of
        a frame in flight that waits for its turn, or of one that was finished before its elders.
        """
        self._interrupted()
        self._prefill, oldest = [], self.oldest_unfinished
        self._forgotten = (range(oldest),) if oldest else ()
        now = self.plan.now(self.tick)
        stays = not self.plan.all_move(self.tick) or without(now.finished, self._forgotten)
        if not (self._forgets and stays):
            self._base, self._shift = oldest, 0
            if oldest != self.plan.num_frames:
                now = self._remembered(after(now, self.plan.block(oldest)))
                self._shift = self._policy.view(self._fed(self.plan.block(oldest)), now)[-1].shift
        return oldest

    def missing(self, plan: Plan) -> list[int]:
        """Given frames of `plan` whose K/V or clean latents going on with it would need anew."""
        now = plan.now(0)
        needed = numbers(within(self._kept_by_policy(now, plan), 0, plan.prefix))
        gone = [f for f in needed if self.levels.get(f) != plan.steps(f)]
        if gone or not self._forgets:
            return gone
        stored = self._noted().stored.union(*self._prefill)
        blocks = self.plan.blocks_of(f for f in needed if f not in stored)
        due = [fed for fed in (self._fed(b, stores=True) for b in blocks) if self._policy.stores(fed)]
        here = stored.union(*[fed.block for fed in due]).intersection(self.levels)
        return [f for f in numbers(frames_in([view for _, view in self._views(due, now)])) if f not in here]

    def restart(self, plan: Plan, anew: int = 0) -> None:
        """Go on with another plan, whose given frames are finished; K/V of the last `anew` are not stored."""
        self._interrupted()
        self.plan, self.tick, self._renewed = plan, 0, -1
        made = plan.prefix - anew
        self._prefill = [chunk for chunk in self._prefill if chunk.stop <= made]
        levels = {f: k for f, k in self.levels.items() if f < made}
        levels |= {f: plan.steps(f) for f in range(made, plan.prefix)}
        stored = {f for f in self._progress.stored if f < made}
        self._progress = self._progress._replace(levels=levels, stored=stored)
        if anew and self._forgets:
            now = plan.now(0)
            due = self._prefill or list(self._to_store(now, within(self._kept_by_policy(now), 0, made)))
            chunks = [*(due if made else []), *plan.given_chunks(self._policy.chunk, made)]
            self._prefill = [chunk for chunk in chunks if without((chunk,), self._forgotten)]

    # --- private

    def _begun(self) -> tuple[Roster, int, Progress]:
        """What the next pass feeds, the tick until which the same frames move, and where the walk stands."""
        roster, tick = self._planned().first, self.tick
        moved, end = roster.updated, tick + 1
        if moved and not self._policy.by_level and self.plan.block(moved[0]).start >= self.plan.prefix:
            end = self.plan.steady_until(tick)
        return roster, end, self._noted().copy()

    def _planned(self) -> Feed:
        """What the plan's tick moves, and before it what is to be stored: in a pass before, where their views
        do not agree."""
        tick, now = self.plan.tick(self.tick), self.plan.now(self.tick)
        levels = dict(zip(tick.frames, tick.levels, strict=True))
        if not self._forgets:
            return self._everything(levels, now)
        if tick.index != self._renewed:
            for block in self.plan.blocks_of(tick.starting):
                self._policy = self._policy.begun(block, self._remembered(now))
                self._noted().stored.difference_update(numbers(self._policy.renewed(block)))
            self._renewed = tick.index
        moves = [self._fed(block, level=levels[block[-1]]) for block in self.plan.blocks_of(tick.frames)]
        if self._stores_first and self._storing(early := self._before_tick()):
            now, moves = early, []
        stores = self._storing(now)
        seen = self._views(stores + moves, now)
        if stores and (self._made_of(moves, stores, now) or not agree([view for _, view in seen])):
            seen = self._views(stores, self._before_tick())
            while not agree([view for _, view in seen]):
                seen.pop()
        return self._feed(seen, now, union(self._kept_by_policy(now), now.unfinished))

    def _before_tick(self) -> Now:  # nothing that this tick starts has begun
        return before(self.plan.now(self.tick), self.plan.tick(self.tick).starting)

    def _storing(self, now: Now) -> list[Fed]:
        return [self._fed(block, stores=True) for block in self._to_store(now, self._kept_by_policy(now))]

    def _fed(self, block: range, *, level: int | None = None, stores: bool = False) -> Fed:
        level = self.levels.get(block[-1], 0) if level is None else level
        return Fed(block, level, self.plan.steps(block[-1]), stores)

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
        made = {own.cell: own for fed, _ in seen for own in self._policy.made(fed, self._remembered(now))}
        kept = union(kept, frames_in([view for _, view in seen]))
        context = self._has_context and not self._context_done
        once = context or not all(columns["updates"])
        columns |= {"kept": kept, "made": tuple(made.values()), "feeds_context": context, "once": once}
        return Feed(Roster(**columns, tick=self.tick, fixed=self._policy.slides_after or 0))

    def _made_of(self, moves: list[Fed], stores: list[Fed], now: Now) -> bool:
        """Whether something that blocks see is made of K/V that are still to be stored."""
        now, due = self._remembered(now), {(f, self._policy.copy(fed)) for fed in stores for f in fed.block}
        made = [own for fed in moves for own in self._policy.made(fed, now)]
        return any(source in due for own in made for source in own.sources)

    def _layers(self, feds: list[Fed], now: Now) -> tuple[tuple[View, ...], ...]:
        if not self._policy.by_layer:
            return ()
        now = self._remembered(now)
        views = [tuple(map(self._standing, self._policy.views(fed, now))) for fed in feds]
        return tuple([own for fed, own in zip(feds, views, strict=True) for _ in fed.block])

    def _prefill_feed(self, chunk: range) -> Feed:
        finished = (range(chunk.start),) if chunk.start else ()
        now = Now((range(chunk.stop),), (chunk,), finished)
        kept = self._kept_by_policy(now)
        remembered = numbers(without((chunk,), self._forgotten))
        feds = [self._fed(block, stores=True) for block in self.plan.blocks_of(remembered)]
        waiting = within((range(self.plan.prefix),), chunk.stop, self.plan.prefix)
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
        levels = self.levels
        stops = [end if self._sees_later else plan.block(frame).stop for frame in frames]
        return Feed(
            Roster(
                frames=tuple(frames),
                updates=tuple(frame in moved for frame in frames),
                levels=tuple([levels.get(f) or (0 if f in moved else plan.steps(f) + 1) for f in frames]),
                steps=tuple(map(plan.steps, frames)),
                tracks=tuple(map(plan.track, frames)),
                views=tuple([(Run(frames.start, stop, 0, shift),) for stop in stops]),
                copies=(0,) * len(frames),
                positions=tuple([frame + shift for frame in frames]),
                kept=(frames,),
                feeds_context=self._has_context,
                tick=self.tick,
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
        return counted_from(forget(view, self._forgotten), self._base, self._shift)

    def _kept_by_policy(self, now: Now, plan: Plan | None = None) -> Frames:
        oldest = now.oldest_unfinished
        if plan is None:
            plan, oldest = self.plan, max(0, oldest - self._policy.back)
        if plan.num_frames is not None:
            oldest = min(oldest, plan.num_frames - 1)
        return without(self._policy.kept(plan.block(oldest), now), self._forgotten)

    def _stale(self, kept: Frames) -> list[int]:
        """Frames whose K/V are no longer right because a frame left that they may carry."""
        last = self._noted().kept
        return numbers(self._policy.stale("slide", kept)) if kept != last and without(last, kept) else []

    def _to_store(self, now: Now, kept: Frames) -> Iterator[range]:
        """Blocks whose K/V later ones read, in this or a later pass, and are not stored as they now are."""
        stale = self._stale(union(kept, now.unfinished))
        stored = self._noted().stored.difference(stale)
        levels, stores = self.levels, self._policy.stores
        due = [f for run in kept for f in run if f not in stored and levels.get(f)]
        for block in self.plan.blocks_of(due):
            if stores(self._fed(block, stores=True)) and all([f in levels for f in block]):
                yield block
