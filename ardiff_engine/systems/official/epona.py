# SPDX-License-Identifier: Apache-2.0
"""What the code of Epona does in its own way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from math import exp

import numpy as np

from ardiff_engine.memory.view import Run
from ardiff_engine.plan import Plan
from ardiff_engine.systems.calls import Call, CallsOf
from ardiff_engine.systems.trace import Trace


def times(steps: int, tokens: int) -> tuple[float, ...]:
    """Equal steps, moved towards noise the more, the more tokens a frame has (as Flux does it)."""
    more = exp(0.5 + 0.65 * (tokens - 256) / (4096 - 256))
    left = [1 - i / steps for i in range(1, steps)]
    return (0.0, *[1 - more / (more + 1 / u - 1) for u in left], 1.0)


def encoded(window: int) -> CallsOf:
    """A call for the last `window` frames, each of which sees those before it, then the steps of a frame."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        moves = [cell for cells in walk for cell in cells if cell.updates]
        for frame, steps in groupby(moves, lambda cell: cell.frame):
            first, *others = steps
            start = max(0, frame - window)
            clean = first._replace(updates=False, level=plan.num_steps, written=False)
            yield [
                clean._replace(frame=f, view=(Run(start, f + 1, shift=-start),)) for f in range(start, frame)
            ]
            for cell in (first, *others):
                yield [cell._replace(view=(Run(frame, frame + 1),), written=False)]

    return calls_of


def without_places(trace: Trace) -> Trace:
    """The network that denoises has no places."""
    moves = np.broadcast_to(trace.updated.any(axis=1, keepdims=True), trace.position.shape)
    return replace(trace, position=np.where(moves, np.nan, trace.position))
