# SPDX-License-Identifier: Apache-2.0
"""Views: what a block sees, as values. One type for memories, page lists, traces and pictures."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from ardiff_engine.errors import PlanError
from ardiff_engine.plan.now import Frames, Now, frames_of


class Run(NamedTuple):
    """Frames first .. stop − 1: which `copy` of their K/V, seen `shift` frames away from their numbers, with
    `bias` added to their logits."""

    first: int
    stop: int
    copy: int = 0
    shift: int = 0
    bias: float = 0.0


View = tuple[Run, ...]
"""In the order in which attention reads them."""


class Fed(NamedTuple):
    """A block as a pass feeds it: at a level of `steps`, to move it or (`stores`) for its K/V alone."""

    block: range
    level: int
    steps: int
    stores: bool


def view_of(frames: Frames, shift: int = 0, copy: int = 0) -> View:
    """A view of these frames."""
    return tuple([Run(run.start, run.stop, copy, shift) for run in frames])


def within(frames: Frames, first: int, stop: int) -> Frames:
    """Those from `first` to before `stop`."""
    if len(frames) == 1:
        run = frames[0]
        if first <= run.start and run.stop <= stop:
            return frames
        first, stop = max(run.start, first), min(run.stop, stop)
        return (range(first, stop),) if first < stop else ()
    cut = [range(max(run.start, first), min(run.stop, stop)) for run in frames]
    return tuple([run for run in cut if run])


def union(*sets: Frames) -> Frames:
    """Frames that are in any of the sets."""
    if len(set(sets)) == 1:
        return sets[0]
    found: list[range] = []
    for run in sorted([run for frames in sets for run in frames], key=lambda run: run.start):
        if found and run.start <= found[-1].stop:
            if run.stop > found[-1].stop:
                found[-1] = range(found[-1].start, run.stop)
        else:
            found.append(run)
    return tuple(found)


def without(frames: Frames, gone: Frames) -> Frames:
    """Frames that are not in `gone`."""
    for hole in gone:
        cut = [
            part
            for run in frames
            for part in (
                range(run.start, min(run.stop, hole.start)),
                range(max(run.start, hole.stop), run.stop),
            )
        ]
        frames = tuple([run for run in cut if run])
    return frames


def before(now: Now, starting: Iterable[int]) -> Now:
    """Without frames that this tick starts: nobody has written them yet."""
    new = frames_of(starting)
    return Now(without(now.started, new), without(now.unfinished, new), now.finished)


def after(now: Now, block: range) -> Now:
    """With a block in flight, also where it has not started."""
    own = (block,)
    return Now(union(now.started, own), union(now.unfinished, own), without(now.finished, own))


def numbers(frames: Frames) -> list[int]:
    """Each of them."""
    return [frame for run in frames for frame in run]


def contains(frames: Frames, frame: int) -> bool:
    for run in frames:
        if run.start <= frame < run.stop:
            return True
    return False


def outside(frames: Frames, asked: Iterable[int]) -> list[int]:
    """Those of the frames asked for that are not in `frames`."""
    if len(frames) == 1:
        first, stop = frames[0].start, frames[0].stop
        return [frame for frame in asked if not first <= frame < stop]
    inside = set().union(*frames)
    return [frame for frame in asked if frame not in inside]


def frames_in(views: Iterable[View]) -> Frames:
    """The frames that any of the views shows."""
    found: list[range] = []
    for first, stop in sorted({(run.first, run.stop) for view in views for run in view}):
        if found and first <= found[-1].stop:
            if stop > found[-1].stop:
                found[-1] = range(found[-1].start, stop)
        else:
            found.append(range(first, stop))
    return tuple(found)


def agree(views: Collection[View]) -> bool:
    """Whether no copy of a frame is seen at two places."""
    if len({run.shift for view in views for run in view}) == 1:
        return True
    runs = {(run.copy, run.first, run.stop, run.shift) for view in views for run in view}
    reached: dict[tuple[int, int], int] = {}
    for copy, first, stop, shift in sorted(runs):
        for (same, other), end in reached.items():
            if same == copy and other != shift and end > first:
                return False
        reached[copy, shift] = max(stop, reached.get((copy, shift), 0))
    return True


def forget(view: View, gone: Frames) -> View:
    """The view without the frames in `gone`."""
    if not gone or gone[-1].stop <= min([run.first for run in view]):
        return view
    return tuple(
        run._replace(first=part.start, stop=part.stop)
        for run in view
        for part in without((range(run.first, run.stop),), gone)
    )


def own_run(view: View, block: range, copy: int) -> Run:
    """The run that shows a block to itself, in the copy that it writes; PlanError if there is none."""
    for run in view:
        if run.copy == copy and run.first <= block.start and block.stop <= run.stop:
            return run
    raise PlanError(
        f"the view of frame {block[-1]} does not show copy {copy} of itself, as it is fed: {view}"
    )


def counted_from(view: View, base: int, shift: int) -> View:
    """The view with frame `base` at 0, which it has shown `shift` away from its number.

    A memory may show later frames nearer to the first ones, but never farther away than that.
    """
    back = base + min(view[-1].shift, shift)
    if not base or back <= 0:
        return view
    return tuple([run._replace(shift=run.shift - back) for run in view])


def moved_on(runs: Iterable[Run], by: int, fixed: int) -> View | None:
    """Runs `by` frames further, but for those before frame `fixed`; None if one holds frames of both."""
    moved = []
    for run in runs:
        if run.first >= fixed:
            run = Run(run.first + by, run.stop + by, run.copy, run.shift, run.bias)
        elif run.stop > fixed:
            return None
        moved.append(run)
    return tuple(moved)
