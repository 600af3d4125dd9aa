# SPDX-License-Identifier: Apache-2.0
"""What the code of StreamDiffusionV2 does in its own way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ardiff_engine.plan import Plan
from ardiff_engine.systems.calls import Call, CallsOf, by_block


def rows(prepared: int) -> CallsOf:
    """StreamDiffusionV2: after the prepared frames a row of the batch for every step, also while the pipeline
    fills. It stops without being drained."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        for cells in walk:
            first = cells[0].frame
            if first >= prepared and cells[-1].level > 0:
                return
            yield from by_block(plan, [cells])
            if first >= prepared:
                empty = cells[0]._replace(frame=-1, updates=False, view=cells[0].view[:1])
                yield from [[empty]] * (plan.num_steps - len(cells))

    return calls_of
