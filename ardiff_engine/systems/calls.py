# SPDX-License-Identifier: Apache-2.0
"""The calls of a network that serve one stream: which cells each of them feeds.

The engine stores K/V in passes that move other blocks, since in every layer they are written before anyone
reads them. Most published code spends a call of its own on that. So a system says how its code cuts the
passes of the engine into calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.memory import MemoryPolicy
from ardiff_engine.memory.view import View
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Plan

ANY_NETWORK = ModelSpec(
    num_frames=1, tokens_per_frame=1, channels=1, layers=1, heads=1, kv_heads=1, head_dim=1
)


class Cell(NamedTuple):
    """A frame as a call feeds it, on a track and at a level: to move it (`updates`), or for its K/V alone.

    copy: the version of its K/V that the call computes. written: whether they stay in the cache.
    """

    frame: int
    copy: int
    updates: bool
    track: int
    level: int
    view: View
    written: bool = True


Call = list[Cell]
CallsOf = Callable[[Plan, Call], list[Call]]
"""How a pass of the engine is cut into calls."""


def passes(
    plan: Plan, memory: MemoryPolicy, spec: ModelSpec, num_ticks: int | None, stores_last: bool
) -> Iterator[Call]:
    """The passes of the engine. stores_last: and one for what the plan leaves unstored at its end."""
    ticks, _ = plan.shape(num_ticks)
    feeder = Feeder(plan, memory, spec)
    while feeder.tick < ticks:
        feed = feeder.next()
        own = feed.roster
        columns = (own.frames, own.copies, own.updates, own.tracks, feed.levels, own.views)
        yield [Cell(*cell) for cell in zip(*columns, strict=True)]
        feeder.advance(feed)
    if stores_last and ticks == plan.num_ticks:
        last = [
            Cell(frame, memory.copy(fed), False, plan.track(frame), fed.level, view)
            for fed, view in feeder.unstored()
            for frame in fed.block
        ]
        if last:
            yield last


def by_pass(plan: Plan, cells: Call) -> list[Call]:
    """A pass is a call."""
    return [cells]


def by_kind(plan: Plan, cells: Call) -> list[Call]:
    """First the blocks that are stored, then those that move. Where none moves, each block has a call."""
    return _cut(plan, cells, not any(cell.updates for cell in cells))


def by_block(plan: Plan, cells: Call) -> list[Call]:
    """Every block has a call; those that are stored come first."""
    return _cut(plan, cells, True)


def _cut(plan: Plan, cells: Call, each: bool) -> list[Call]:
    calls: dict[tuple[bool, range | None], Call] = {}
    for cell in sorted(cells, key=lambda cell: cell.updates):
        calls.setdefault((cell.updates, plan.block(cell.frame) if each else None), []).append(cell)
    return list(calls.values())
