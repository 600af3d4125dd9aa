# SPDX-License-Identifier: Apache-2.0
"""What the code of Ca2-VDM does in its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.prediction import x0_weights
from ardiff_engine.diffusion.solvers import Table
from ardiff_engine.diffusion.solvers.solver import coefficient_table
from ardiff_engine.plan import Plan
from ardiff_engine.systems.calls import Call, CallsOf, Cell, by_kind
from ardiff_engine.systems.trace import Trace


def solver(steps: int) -> Table:
    """DDPM over `steps` of 1000 timesteps, with a variance halfway between its bounds, as logarithms."""
    stride = 999 / (steps - 1) if steps > 1 else 1.0
    told = [round(i * stride) for i in range(steps)]
    now = NoiseSchedule.linear(1e-4, 0.02).alphas_cumprod[torch.tensor(told)]
    before = torch.cat([torch.ones(1, dtype=torch.float64), now[:-1]])
    beta = 1 - now / before
    least = beta * (1 - before) / (1 - now)
    least[0] = least[min(1, steps - 1)]
    noise = (least * beta) ** 0.25
    noise[0] = 0.0
    b = beta * before.sqrt() / (1 - now)
    a = (1 - before) * (1 - beta).sqrt() / (1 - now)
    rows = coefficient_table(x0_weights(now.sqrt(), (1 - now).sqrt(), "eps"), a, b, noise)
    return Table([*map(float, reversed(told)), 0.0], rows.flip(0), waiting=999.0)


def causal(moving: bool) -> CallsOf:
    """Frames of a block see themselves and earlier ones when they are stored, and (moving) when they move."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        for cells in by_kind(plan, walk):
            kept = [cell._replace(written=not cell.updates) for cell in cells]
            yield [cell if cell.updates and not moving else _up_to_itself(cell) for cell in kept]

    return calls_of


def _up_to_itself(cell: Cell) -> Cell:
    return cell._replace(view=tuple([own._replace(stop=min(own.stop, cell.frame + 1)) for own in cell.view]))


def in_a_ring(rows: int) -> Callable[[Trace], Trace]:
    """Places are rows of a table that is used again from its start."""

    def of(trace: Trace) -> Trace:
        return replace(trace, position=trace.position % rows)

    return of
