# SPDX-License-Identifier: Apache-2.0
"""What the code of Knot Forcing does in its own way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ardiff_engine.plan import Plan
from ardiff_engine.systems.calls import Call, CallsOf, by_kind


def with_the_next(knot: int) -> CallsOf:
    """Knot Forcing: the first `knot` frames after a block are made with it, and once more with their own."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        for cells in by_kind(plan, walk):
            last = cells[-1]
            stop = last.frame + 1
            ends = min(stop + knot, plan.num_frames or stop)
            if last.updates and ends > stop:
                view = (*last.view[:-1], last.view[-1]._replace(stop=ends))
                own = [cell._replace(view=view) for cell in cells]
                after = [last._replace(frame=frame, view=view, written=False) for frame in range(stop, ends)]
                cells = own + after
            yield cells

    return calls_of
