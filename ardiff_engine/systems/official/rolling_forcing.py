# SPDX-License-Identifier: Apache-2.0
"""What the code of Rolling Forcing does in its own way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ardiff_engine.memory import Run
from ardiff_engine.plan import Plan
from ardiff_engine.systems.calls import Call, by_kind


def clean_windows(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
    """Rolling Forcing: a window stores its oldest block as it is. The clean pass over that block follows also
    while the window fills: it then stores an estimate, which nobody reads."""
    for cells in by_kind(plan, walk):
        first, head = cells[0], plan.block(cells[0].frame)
        yield [cell._replace(written=cell.frame in head) for cell in cells]
        if first.updates and first.level + 1 < plan.num_steps:
            alone = (Run(head.start, head.stop),)
            clean = first._replace(updates=False, level=plan.num_steps, view=alone, estimate=True)
            yield [clean._replace(frame=frame) for frame in head]
