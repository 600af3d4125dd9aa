# SPDX-License-Identifier: Apache-2.0
"""What the code of FIFO-Diffusion does in its own way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.solvers import Table, ddim_rows
from ardiff_engine.memory.view import Run
from ardiff_engine.plan import Plan
from ardiff_engine.systems.calls import Call, CallsOf, Cell


def solver(steps: int, eta: float) -> Table:
    told = [round(i * 999 / max(1, steps - 1)) for i in reversed(range(steps))]
    alphas = NoiseSchedule.sqrt_linear(8.5e-4, 0.012).alphas_cumprod[torch.tensor([*told, told[-1]])]
    return Table([*map(float, told), float(told[-1])], ddim_rows(alphas, "eps", eta), waiting=999.0)


def queue(size: int, ticks: int, lookahead: bool) -> CallsOf:
    """Partitions from the noisy end on. The queue is full from the start: the ticks that would fill it are
    replaced by a clip with noise, and none drains it. lookahead: windows at every half partition, whose
    noisier half moves; frames that are finished stand before the queue."""
    stride = size // 2 if lookahead else size

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        steps = plan.num_steps
        for tick in range(ticks):
            levels = [min(steps, plan.level(f, tick + steps - 1)) for f in range(plan.num_frames or 0)]
            for stop in range(tick + plan.prefix + steps, tick + plan.prefix, -stride):
                window = range(stop - size, stop)
                seen = (Run(window.start, window.stop, shift=-window.start),)
                moves = range(stop - stride, stop)
                yield [Cell(f, 0, f in moves, 0, levels[f], seen, written=False) for f in window]

    return calls_of
