# SPDX-License-Identifier: Apache-2.0
"""FIFO-Diffusion: a queue of frames at successive levels; every tick each takes one step, and one leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.solvers import Table, ddim_rows
from ardiff_engine.memory.view import Run
from ardiff_engine.memory.windows import Windows
from ardiff_engine.plan import Plan, blocks
from ardiff_engine.systems.calls import Call, CallsOf, Cell
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry


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


def system(size: int, partitions: int, new: int, lookahead: bool, eta: float) -> System:
    steps, given = size * partitions, size // 2 if lookahead else 0
    ticks = new + steps - size
    frames = given + steps + ticks - 1
    return System(
        name="fifo-diffusion",
        title="FIFO-Diffusion",
        paper="2405.11473",
        repository="jjihwan/FIFO-Diffusion_public",
        plan=blocks(1, lag=1),
        solver=solver(steps, eta),
        memory=Windows(((0, frames),), joint=True),
        guidance=12.0,
        fps=8,
        num_frames=frames,
        given_frames=given,
        calls_of=queue(size, ticks, lookahead),
        stores_last=False,
        exact="Calls, with one and more partitions and with lookahead; latents without noise of the steps.",
        left_out="The engine sees a window whole; partitions, and a queue that is full at once, are traced.",
    )


SYSTEM = system(16, 4, 8, True, 1.0)


def from_spec(entry: Entry) -> System:
    sizes = (entry["frames_per_partition"], entry["partitions"], entry["new_frames"])
    return replace(system(*sizes, entry["lookahead"], entry["eta"]))
