# SPDX-License-Identifier: Apache-2.0
"""What one stream feeds in one pass: which cells, at which level, and what they see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain, compress
from typing import Any, NamedTuple

from ardiff_engine.memory.made import Made
from ardiff_engine.memory.progress import Progress
from ardiff_engine.memory.view import Run, View, moved_on, view_of
from ardiff_engine.plan import Cycle, Frames, Plan

PER_CELL = ("frames", "updates", "levels", "steps", "tracks", "views", "copies", "positions", "layers")


class SequenceViews(NamedTuple):
    """Of one sequence, in places of its list of shown frames, so that windows that slide stay equal.

    num_shown: length of that list. own: of each cell, the place of its own frame. counts: runs in its view;
    begins, lengths, biases: of all runs, cell by cell (no biases: all are 0).
    feeds_context: whether the context is fed as well.
    layers: where layers see differently, their different views of the same list; of_layer: which of them each
        one has.
    """

    num_shown: int
    own: tuple[int, ...]
    counts: tuple[int, ...]
    begins: tuple[int, ...]
    lengths: tuple[int, ...]
    biases: tuple[float, ...]
    feeds_context: bool
    layers: tuple[SequenceViews, ...] = ()
    of_layer: tuple[int, ...] = ()

    def of(self, cells: tuple[bool, ...]) -> SequenceViews:
        """Those of some cells, without the context, in the same list."""
        runs = list(
            chain.from_iterable([[own] * count for own, count in zip(cells, self.counts, strict=True)])
        )
        return SequenceViews(
            num_shown=self.num_shown,
            own=tuple(compress(self.own, cells)),
            counts=tuple(compress(self.counts, cells)),
            begins=tuple(compress(self.begins, runs)),
            lengths=tuple(compress(self.lengths, runs)),
            biases=tuple(compress(self.biases, runs)),
            feeds_context=False,
            layers=tuple([views.of(cells) for views in self.layers]),
            of_layer=self.of_layer,
        )


class FedSequence(NamedTuple):
    """What a branch feeds. updates, levels, tracks: of each cell. first: level, track and update of the cell
    that a joint condition goes by."""

    views: SequenceViews
    updates: tuple[bool, ...]
    levels: tuple[int, ...]
    tracks: tuple[int, ...]
    first: tuple[int, int, bool]

    def moving(self) -> FedSequence:
        """Without context, and without cells that the solver does not move."""
        moving = self.updates
        levels, tracks = (tuple(compress(own, moving)) for own in (self.levels, self.tracks))
        return FedSequence(self.views.of(moving), (True,) * sum(moving), levels, tracks, self.first)


@dataclass(frozen=True, slots=True, eq=False)
class Roster:
    """The cells of a pass of one stream and what they see, from the first pass on that feeds them.

    While cells only go from level to level it stays the same object, so that what depends on it alone
    (pages, views, positions) is looked up and not computed again.

    The first pass may feed more than those that follow: the context, and frames for their K/V alone.

    frames: of each cell; a frame that is both moved and stored in a pass has two. updates: which of them the
        solver moves. levels: row of its track's timesteps in the first pass, that after the last for a frame
        that waits to start. steps: of its track; tracks: which one that is.
    views: what each cell sees, its own frame included. copies: which copy of its K/V it writes. positions:
        where it stands. kept: frames whose pages and latents stay.
    feeds_context: whether the context is part of the pass.
    once: whether the context and frames that are not moved are part of the first pass alone.
    layers: where layers see differently, what each cell sees in each of them: parts of `views`.
    made: what the views show that no pass has fed; the pass begins with those that are not there yet.
    tick: of the plan, in which it begins. fixed: frames before this one stay where they are when it moves on.
    """

    frames: tuple[int, ...]
    updates: tuple[bool, ...]
    levels: tuple[int, ...]
    steps: tuple[int, ...]
    tracks: tuple[int, ...]
    views: tuple[View, ...]
    copies: tuple[int, ...]
    positions: tuple[int, ...]
    kept: Frames
    feeds_context: bool
    tick: int
    fixed: int = 0
    once: bool = False
    layers: tuple[tuple[View, ...], ...] = ()
    made: tuple[Made, ...] = ()
    updated: tuple[int, ...] = field(init=False)
    """The frames that the solver moves."""
    passes_left: int = field(init=False)
    """Passes with this roster after which one of them is finished."""
    shifted: bool = field(init=False)
    """Whether anything is seen, or fed, elsewhere than where its number says."""
    _rest: Roster | None = field(init=False, default=None)
    _shown: View = field(init=False, default=())
    _sequence: FedSequence | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "updated", tuple(compress(self.frames, self.updates)))
        left = [steps - level for steps, level in zip(self.steps, self.levels, strict=True)]
        object.__setattr__(self, "passes_left", min(compress(left, self.updates), default=1))
        shifted = self.positions != self.frames or any([run.shift for view in self.views for run in view])
        object.__setattr__(self, "shifted", shifted)

    @property
    def rest(self) -> Roster:
        """What the passes after the first one feed. The same stays, and waits for the next roster to go."""
        if not self.once:
            return self
        if self._rest is None:
            rest = replace(self, **self.moving(), feeds_context=False, once=False, made=())
            object.__setattr__(self, "_rest", rest)
        return self._rest or self

    @property
    def shown(self) -> View:
        """What any cell sees, in order of copy and frame."""
        self.sequence  # noqa: B018
        return self._shown

    @property
    def sequence(self) -> FedSequence:
        """Its cells, in places of `shown`."""
        if self._sequence is None:
            shown, views = _seen_by(self)
            first = (self.levels[0], self.tracks[0], self.updates[0]) if self.frames else (0, 0, False)
            object.__setattr__(self, "_shown", shown)
            sequence = FedSequence(views, self.updates, self.levels, self.tracks, first)
            object.__setattr__(self, "_sequence", sequence)
            return sequence
        return self._sequence

    def moved_on(self, by: int) -> Roster | None:
        """The same for frames that are `by` further, but for fixed ones. None where it does not move on: runs
        of frames hold both, or more than numbers of frames would change."""
        moved = [moved_on(view, by, self.fixed) for view in self.views]
        views = tuple([view for view in moved if view is not None])
        kept = moved_on(view_of(self.kept), by, self.fixed)
        if self.layers or self.made or self.frames[0] < self.fixed or kept is None or None in moved:
            return None
        return replace(
            self,
            frames=tuple([frame + by for frame in self.frames]),
            views=views,
            positions=tuple([position + by for position in self.positions]),
            kept=tuple([range(run.first, run.stop) for run in kept]),
        )

    def is_moved(self, other: Roster, by: int) -> bool:
        """Whether it is the other one, moved on."""
        if sum(map(len, self.kept)) != sum(map(len, other.kept)):
            return False  # as long as a window grows
        moved, names = other.moved_on(by), (*PER_CELL, "kept", "feeds_context", "once", "made")
        return moved is not None and all(getattr(self, name) == getattr(moved, name) for name in names)

    def moving(self) -> dict[str, Any]:
        """What is said per cell, of those that the solver moves alone."""
        return {name: tuple(compress(getattr(self, name), self.updates)) for name in PER_CELL}


@dataclass(frozen=True, slots=True, eq=False)
class Feed:
    """One pass of one stream: `passed` passes after the first one with a roster, which was planned for frames
    `by` before those that are fed now. Frames that the solver moves have risen by one level in each pass."""

    first: Roster
    passed: int = 0
    by: int = 0

    @property
    def planned(self) -> Roster:
        """What this pass feeds, but for the numbers of frames."""
        return self.first.rest if self.passed else self.first

    @property
    def roster(self) -> Roster:
        """What this pass feeds."""
        moved = self.planned.moved_on(self.by) if self.by else self.planned
        assert moved is not None, "only what moves on is used again"
        return moved

    @property
    def fed_once(self) -> bool:
        """Whether this pass feeds what those after it do not."""
        return self.first.once and not self.passed

    @property
    def feeds_context(self) -> bool:
        return self.first.feeds_context and (self.fed_once or not self.first.once)

    def later(self, passes: int) -> Feed:
        """So many passes after this one, or before it, while only levels change."""
        return Feed(self.first, self.passed + passes, self.by)

    def is_of(self, other: Feed | None) -> bool:
        """Whether both are passes of one roster, over the same frames."""
        return other is not None and self.first is other.first and self.by == other.by

    # --- frames as they are numbered now

    def numbered(self, frames: tuple[int, ...]) -> tuple[int, ...]:
        """Frames that the roster feeds, or their positions."""
        by = self.by
        return tuple([frame + by for frame in frames]) if by else frames

    @property
    def updated(self) -> tuple[int, ...]:
        """The frames that the solver moves."""
        return self.numbered(self.first.updated)

    def runs(self, frames: Frames) -> Frames:
        """Frames that the roster names."""
        by, fixed = self.by, self.first.fixed
        if not by:
            return frames
        return tuple([r if r.stop <= fixed else range(r.start + by, r.stop + by) for r in frames])

    def view(self, view: View) -> View:
        """What the roster shows."""
        moved = moved_on(view, self.by, self.first.fixed) if self.by else view
        assert moved is not None, "only what moves on is used again"
        return moved

    @property
    def kept(self) -> Frames:
        """Frames whose pages and latents stay."""
        return self.runs(self.first.kept)

    @property
    def levels(self) -> tuple[int, ...]:
        """Row of its track's timesteps for each cell of the roster."""
        roster, passed = self.planned, self.passed
        moved = zip(roster.levels, roster.updates, strict=True)
        return tuple(level + passed if updates else level for level, updates in moved)

    @property
    def updated_levels(self) -> tuple[int, ...]:
        """Of the frames that the solver moves, before it does."""
        first, passed = self.first, self.passed
        return tuple([level + passed for level in compress(first.levels, first.updates)])


@dataclass(frozen=True, slots=True, eq=False)
class SteadyRun:
    """From tick `begin` to before `end` the solver moves the same frames: those of the roster, `by` further.

    finishes: the frames that a reader gets when the run has gone through all passes of its roster: those that
        are finished then and come after finished ones alone.
    alike: the tick from which on every roster, this one included, was that of a cycle before, moved on.
    began: where the walk stood before it, for frames `by` before those that it moves."""

    begin: int
    end: int
    roster: Roster
    by: int
    finishes: range
    alike: int
    began: Progress


class SteadyRuns:
    """What one stream has fed, since something last came between, and whether that repeats itself.

    A roster follows from plan, memory and what is stored. Where plan and memory repeat themselves, and all
    rosters of a cycle, and what was stored before them, were those of the cycle before, moved on, so are all
    to come, and none of them needs to be planned.

    last: the run of the last pass.
    """

    def __init__(self) -> None:
        self.last: SteadyRun | None = None
        self._past: dict[int, SteadyRun] = {}  # those of one cycle, by their first tick
        self._cycle: Cycle | None = None

    def copy(self) -> SteadyRuns:
        other = SteadyRuns()
        other.last, other._past, other._cycle = self.last, dict(self._past), self._cycle
        return other

    def at(
        self,
        tick: int,
        plan: Plan,
        repeats_itself: bool,
        planned: Callable[[], tuple[Roster, int, Progress]],
    ) -> SteadyRun:
        """The run that this tick is in. repeats_itself: whether the memory does. planned: says the roster
        that begins now, the end of its run, and where the walk stands."""
        last = self.last
        if last is not None and last.begin <= tick < last.end:
            return last
        if repeats_itself:
            self._cycle = self._cycle or plan.cycle(tick)
        cycle = self._cycle
        before: SteadyRun | None = None
        if cycle is not None and (cycle.end is None or tick < cycle.end):
            before = self._past.pop(tick - cycle.ticks, None)
        if cycle and last and before and last.alike + cycle.ticks <= tick:
            end, by, due = before.end + cycle.ticks, cycle.frames, before.finishes
            due = range(due.start + by, due.stop + by)
            end, by = min(end, cycle.end or end), before.by + by
            run = SteadyRun(tick, end, before.roster, by, due, last.alike, before.began)
        else:
            roster, end, began = planned()
            repeats = False
            if before and cycle:
                by = before.by + cycle.frames
                repeats = roster.is_moved(before.roster, by) and began == before.began.moved_on(
                    by, roster.fixed
                )
            due = range(plan.oldest_unfinished(tick), plan.oldest_unfinished(end))
            run = SteadyRun(tick, end, roster, 0, due, last.alike if last and repeats else end, began)
        if not run.roster.updated:  # the tick is still to come
            self.last, self._past = None, {}
            return run
        self.last = run
        if cycle is not None:
            self._past = {at: own for at, own in self._past.items() if at + cycle.ticks > tick}
            self._past[tick] = run
        return run


def _seen_by(roster: Roster) -> tuple[View, SequenceViews]:
    """What any cell sees, in order of copy and frame, and who sees which of it."""
    distinct = dict.fromkeys(roster.views)
    runs = sorted({(run.copy, run.first, run.stop) for view in distinct for run in view})
    num_shown = 0
    # Frame - offset is its place, from the first frame of each stretch on: (copy, first, stop, offset).
    stretches: list[tuple[int, int, int, int]] = []
    for copy, first, stop in runs:
        begin, offset = first, first - num_shown
        if stretches and stretches[-1][0] == copy and first <= stretches[-1][2]:
            _, begin, end, offset = stretches.pop()
            first, stop = end, max(end, stop)
        num_shown += stop - first
        stretches.append((copy, begin, stop, offset))

    # One number where there is one stretch: it is the same for all frames.
    offsets: int | dict[tuple[int, int], int]
    if len(stretches) == 1:
        offsets = offset = stretches[0][3]
        own = [frame - offset for frame in roster.frames]
    else:
        offsets = {
            (own_copy, frame): offset
            for own_copy, begin, stop, offset in stretches
            for frame in range(begin, stop)
        }
        own = [f - offsets[copy, f] for f, copy in zip(roster.frames, roster.copies, strict=True)]
    by_layer = list(zip(*roster.layers, strict=True))
    different = list(dict.fromkeys(by_layer))

    def listed(views: tuple[View, ...], layers: tuple[SequenceViews, ...] = ()) -> SequenceViews:
        if isinstance(offsets, int):
            begins = [run.first - offsets for view in views for run in view]
        else:
            begins = [run.first - offsets[run.copy, run.first] for view in views for run in view]
        biased = any([run.bias for view in dict.fromkeys(views) for run in view])
        return SequenceViews(
            num_shown=num_shown,
            own=tuple(own),
            counts=tuple(map(len, views)),
            begins=tuple(begins),
            lengths=tuple([run.stop - run.first for view in views for run in view]),
            biases=tuple([run.bias for view in views for run in view]) if biased else (),
            feeds_context=roster.feeds_context,
            layers=layers,
            of_layer=tuple(map(different.index, by_layer)) if layers else (),
        )

    shown = tuple([Run(first, stop, copy) for copy, first, stop, _ in stretches])
    return shown, listed(roster.views, tuple(map(listed, different)))
