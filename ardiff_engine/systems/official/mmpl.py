# SPDX-License-Identifier: Apache-2.0
"""What the code of MMPL does in its own way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ardiff_engine.plan import Plan
from ardiff_engine.systems.calls import Call, CallsOf, by_kind


def unwritten(frames: Iterable[int]) -> CallsOf:
    """MMPL: K/V of the last group are computed for its own calls alone: nobody comes after it."""
    gone = frozenset(frames)

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        for cells in by_kind(plan, walk):
            yield [cell._replace(written=cell.frame not in gone) for cell in cells]

    return calls_of
