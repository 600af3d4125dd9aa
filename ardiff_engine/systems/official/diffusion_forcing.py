# SPDX-License-Identifier: Apache-2.0
"""What the code of Diffusion Forcing does in its own way."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from math import floor

import torch

from ardiff_engine.diffusion.solvers import Table, ddim_rows
from ardiff_engine.memory.windows import Windows
from ardiff_engine.plan import Plan
from ardiff_engine.systems.calls import Call, CallsOf
from ardiff_engine.systems.official.window_calls import cut_to


def solver(total: int, steps: int, stabilization: int, eta: float, clip: float) -> Table:
    """DDIM over a sigmoid schedule; finished frames are told a little noise. The code of images predicts x0
    with eta 1, that of videos v with eta 0."""
    at = torch.linspace(0, 1, total + 1, dtype=torch.float64)
    falling = torch.sigmoid(torch.tensor(3.0, dtype=torch.float64)) - torch.sigmoid(6 * at - 3)
    alphas = falling[1:] / falling[0]
    alphas = torch.cat([torch.ones(1, dtype=torch.float64), alphas.clamp(min=float(alphas[-2]) * 1e-3)])
    levels = torch.tensor([int(i * total / steps) for i in range(steps, -1, -1)])
    rows = ddim_rows(alphas[levels], "x0" if eta else "v", eta, clip)
    told = [float(level - 1) for level in levels[:-1].tolist()]
    return Table([*told, float(stabilization - 1)], rows, waiting=float(total - 1))


def as_coded(uncertainty: float, windows: Windows, ends: Sequence[int]) -> CallsOf:
    """The code's trapezoid: of an even number of frames the middle one counts as finished from the start, and
    its ticks end too early if the uncertainty is less than 1. ends: where the first chunk starts, then where
    each of them ends."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        calls = iter(cut_to(windows)(plan, walk))
        of_chunk = groupby(calls, lambda cells: bisect(ends, next(own.frame for own in cells if own.updates)))
        for chunk, own in of_chunk:
            start, frames = ends[chunk - 1], ends[chunk] - ends[chunk - 1]
            middle = start + frames // 2 if frames % 2 == 0 else -1
            for cells in islice(own, plan.num_steps + floor((frames + 1) // 2 * uncertainty) - 1):
                done = [cell._replace(updates=False, level=plan.num_steps) for cell in cells]
                yield [done[i] if cell.frame == middle else cell for i, cell in enumerate(cells)]

    return calls_of
