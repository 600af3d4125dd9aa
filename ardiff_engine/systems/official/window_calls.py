# SPDX-License-Identifier: Apache-2.0
"""What systems over whole windows share: code that makes other calls than the engine, which feeds every frame
of a window in every pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ardiff_engine.memory.windows import Windows
from ardiff_engine.plan import Plan
from ardiff_engine.systems.calls import Call, CallsOf, by_pass


def given_at(places: Iterable[int]) -> CallsOf:
    """Frames that are given anywhere are fed as finished ones in the calls that would move them, and stay."""
    given = frozenset(places)

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        for cells in by_pass(plan, walk):
            clean = [cell._replace(updates=False, level=plan.num_steps) for cell in cells]
            yield [clean[i] if cell.frame in given else cell for i, cell in enumerate(cells)]

    return calls_of


def cut_to(windows: Windows) -> CallsOf:
    """A window that is shorter than others feeds no frames after its end."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        for cells in by_pass(plan, walk):
            _, stop = windows.of(next(cell.frame for cell in cells if cell.updates))
            yield [cell for cell in cells if cell.frame < stop]

    return calls_of
