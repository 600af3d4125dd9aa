# SPDX-License-Identifier: Apache-2.0
"""The calls of a network that serve one stream: which cells each of them feeds.

The engine stores K/V in passes that move other blocks, since in every layer they are written before anyone
reads them. Most published code spends a call of its own on that, as soon as a block has moved. So a system
says how its code makes calls of the engine's passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, groupby, pairwise
from typing import NamedTuple

from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.memory import MemoryPolicy
from ardiff_engine.memory.made import Copy, Made
from ardiff_engine.memory.view import Run, View
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Plan

ANY_NETWORK = ModelSpec(
    num_frames=1, tokens_per_frame=1, channels=1, layers=1, heads=1, kv_heads=1, head_dim=1
)


class Cell(NamedTuple):
    """A frame as a call feeds it, on a track and at a level: to move it (`updates`), or for its K/V alone.

    copy: the version of its K/V that the call computes. written: whether they stay in the cache.
    estimate: it is fed as the estimate of its clean frame, which its last step made. frame: −1 for a row of a
    batch that holds no frame, and reads its view for nobody.
    """

    frame: int
    copy: int
    updates: bool
    track: int
    level: int
    view: View
    written: bool = True
    estimate: bool = False


Call = list[Cell]
CallsOf = Callable[[Plan, Iterable[Call]], Iterable[Call]]
"""The calls that the passes of a plan are made of."""


def passes(
    plan: Plan, memory: MemoryPolicy, spec: ModelSpec, num_ticks: int | None, stores_last: bool
) -> Iterator[Call]:
    """The passes of the engine. stores_last: and one for what the plan leaves unstored at its end."""
    ticks, _ = plan.shape(num_ticks)
    feeder, made = Feeder(plan, memory, spec), dict[Copy, Made]()
    while feeder.tick < ticks:
        feed = feeder.next()
        own = feed.roster
        made |= {one.cell: one for one in own.made}
        views = [taken_apart(view, made) for view in own.views]
        columns = (own.frames, own.copies, own.updates, own.tracks, feed.levels, views)
        yield [Cell(*cell) for cell in zip(*columns, strict=True)]
        feeder.advance(feed)
    if stores_last and ticks == plan.num_ticks:
        last = [
            Cell(frame, memory.copy(fed), False, plan.track(frame), fed.level, taken_apart(view, made))
            for fed, view in feeder.unstored()
            for frame in fed.block
        ]
        if last:
            yield last


def taken_apart(view: View, made: Mapping[Copy, Made]) -> View:
    """The view with the frames that something is made of, where that stands."""

    def fed(cell: Copy) -> list[Copy]:
        return [cell] if cell not in made else [own for source in made[cell].sources for own in fed(source)]

    runs: list[Run] = []
    for run in view:
        if (run.first, run.copy) in made:
            place = run.first + run.shift
            runs += [Run(frame, frame + 1, copy, place - frame) for frame, copy in fed((run.first, run.copy))]
        else:
            runs.append(run)
    return tuple(runs)


def by_pass(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
    """A pass is a call; K/V stay of what is fed for them alone."""
    return ([cell._replace(written=not cell.updates) for cell in cells] for cells in walk)


def by_kind(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
    """A pass is two calls: for what it stores, then for what it moves, given frames of those blocks included.
    Where nothing moves, each block has one."""
    for cells in walk:
        blocks = {plan.block(cell.frame).start for cell in cells if cell.updates}
        given = [cell.frame < plan.prefix and plan.block(cell.frame).start in blocks for cell in cells]
        moved = [cell for cell, own in zip(cells, given, strict=True) if cell.updates or own]
        stored = [cell for cell, own in zip(cells, given, strict=True) if not (cell.updates or own)]
        if stored and moved:
            yield stored
        elif stored:
            yield from blocks_of(plan, stored)
        if moved:
            yield moved


def by_block(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
    """Every block has a call, the newest first, and each one that is stored after its step has the next."""
    for before, after in pairwise(chain([[]], walk, [[]])):
        stored = {cells[0].frame: cells for cells in blocks_of(plan, [c for c in after if not c.updates])}
        for moved in reversed(blocks_of(plan, [c for c in before if c.updates])):
            yield moved
            if moved[0].frame in stored:
                yield stored.pop(moved[0].frame)
        yield from stored.values()


def blocks_of(plan: Plan, cells: Call) -> list[Call]:
    """The cells of each block, which follow each other."""
    return [list(own) for _, own in groupby(cells, lambda cell: plan.block(cell.frame).start)]
