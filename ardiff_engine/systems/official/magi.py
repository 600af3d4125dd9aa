# SPDX-License-Identifier: Apache-2.0
"""What the code of MAGI-1 does in its own way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ardiff_engine.diffusion.guidance import Branch, Condition, Past
from ardiff_engine.systems.trace import Trace

SHORTCUT = (0, 0.5, 0.75)
"""Of a quarter of the steps: where the three steps lie that are taken of it."""


NEARLY_CLEAN = 0.3
"""The time from which a chunk is not guided."""


def times(steps: int, shift: float, shortcut: bool = False) -> tuple[float, ...]:
    """linspace(0, 1)² shifted towards noise; shortcut: 12 steps, nearer to the start of each quarter."""
    places = (
        [(q + s) / 4 for q in range(4) for s in SHORTCUT] if shortcut else [i / steps for i in range(steps)]
    )
    return tuple(u**2 / (shift + (1 - shift) * u**2) for u in (*places, 1.0))


def three_branches(at: tuple[float, ...]) -> Callable[[Condition, Condition], tuple[Branch, ...]]:
    """(1 − p)·alone + (p − x)·past + x·(past and text), with p = 1.5 and x = 7.5 before t = 0.3, then 1 and
    0. Only the branch of the past stores K/V. at: the time of each level, and 1."""
    text = [7.5 if t < NEARLY_CLEAN else 0.0 for t in at[:-1]]
    past = [1.5 if t < NEARLY_CLEAN else 1.0 for t in at[:-1]]

    def branches(condition: Condition, negative: Condition) -> tuple[Branch, ...]:
        return (
            Branch(condition, text, writes=False),
            Branch(negative, [p - x for p, x in zip(past, text, strict=True)]),
            Branch(negative, [1 - p for p in past], view=Past(frames=0), writes=False),
        )

    return branches


def recorded(chunk: int) -> Callable[[Trace], Trace]:
    """Places are those of a chunk's first latent, and on record for chunks that are fed."""

    def of(trace: Trace) -> Trace:
        return replace(trace, position=np.where(trace.fed, trace.position * chunk, np.nan))

    return of
