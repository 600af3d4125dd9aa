# SPDX-License-Identifier: Apache-2.0
"""What the code of LongLive does in its own way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ardiff_engine.plan import Plan
from ardiff_engine.systems.calls import Call, CallsOf, by_kind


def recached(prompts: tuple[int, ...], reach: int) -> CallsOf:
    """LongLive: before the cache is computed again its last block is stored, for nobody; and all frames
    within reach are fed for it, also those that it has no room for beside a sink that stays."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        last: Call = []
        for cells in walk:
            stored, *moved = by_kind(plan, [cells])
            start = moved[0][0].frame if moved else 0
            if start in prompts and moved[0][0].level == 0:
                yield [cell._replace(updates=False, level=cell.level + 1) for cell in last]
                unused = range(max(0, start - reach), stored[0].frame)
                stored = [stored[0]._replace(frame=frame, written=False) for frame in unused] + stored
            yield stored
            yield from moved
            last = [cell for cell in cells if cell.updates]

    return calls_of
