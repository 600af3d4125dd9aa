# SPDX-License-Identifier: Apache-2.0
"""What the code of HiAR does in its own way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ardiff_engine.plan import Plan
from ardiff_engine.systems.calls import Call, by_kind


def estimates(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
    """HiAR's ablation: what is stored after a step is the estimate of the clean frame, not the next level."""
    for cells in by_kind(plan, walk):
        if not cells[0].updates:
            cells = [cell._replace(level=plan.num_steps, estimate=True) for cell in cells]
        yield cells


def clean_again(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
    """HiAR: each stage begins with a pass over the block that runs ahead, although its K/V are stored."""
    clean: Call = []
    for cells in by_kind(plan, walk):
        first = cells[0]
        if first.frame == 0 and not first.updates:
            clean = cells
        if first.frame == plan.block(0).stop and first.updates:
            yield clean
        yield cells
