# SPDX-License-Identifier: Apache-2.0
"""What the code of FAR does in its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch

from ardiff_engine.diffusion.solvers import Table
from ardiff_engine.diffusion.solvers.solver import coefficient_table
from ardiff_engine.memory import Run
from ardiff_engine.plan import Plan
from ardiff_engine.systems.calls import Call, CallsOf, by_pass
from ardiff_engine.systems.trace import Trace


def solver(steps: int) -> Table:
    """Euler from 1000 down to 1, equally far apart, and to 0; clean frames are told -1."""
    told = torch.linspace(1000, 1, steps, dtype=torch.float64)
    sigmas = torch.cat([told / 1000, torch.zeros(1, dtype=torch.float64)])
    falls = sigmas[1:] - sigmas[:-1]
    rows = coefficient_table((torch.ones_like(falls), falls), torch.zeros_like(falls), torch.ones_like(falls))
    return Table([*told.tolist(), -1.0], rows, waiting=1000.0, prediction="flow")


def with_the_next(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
    """Given frames are stored in the call that moves the first new one."""
    held: Call = []
    for cells in by_pass(plan, walk):
        held = [*held, *cells]
        if any(cell.updates for cell in cells):
            yield held
            held = []


def encoded_again(window: int) -> CallsOf:
    """A long context: frames before the last `window` become fewer tokens; the new frame is in the window.

    The first step of a new frame then feeds the whole window again, since its K/V depend on a frame that has
    left it, and the old ones that are not stored: its code never stores the newest of them.
    """

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        stored = 0
        for cells in with_the_next(plan, walk):
            new = cells[-1]
            old = new.frame + 1 - window
            if new.level == 0 and old > 0:
                clean = new._replace(updates=False, level=plan.num_steps, written=True)
                again = range(stored, new.frame)
                cells = [*[clean._replace(frame=f, view=(Run(0, f + 1),)) for f in again], new]
                stored = old - 1
            yield cells

    return calls_of


def twice_as_clean(window: int) -> Callable[[Trace], Trace]:
    """Frames of fewer tokens are told -2."""

    def of(trace: Trace) -> Trace:
        new = trace.updated.argmax(axis=1)[:, None]
        old = trace.fed & (np.arange(trace.fed.shape[1]) <= new - window)
        return replace(trace, timestep=np.where(old, -2.0, trace.timestep))

    return of
