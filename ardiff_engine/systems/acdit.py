# SPDX-License-Identifier: Apache-2.0
"""ACDiT: a block after the other; the K/V of the last one are stored in the first pass of the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.prediction import x0_weights
from ardiff_engine.diffusion.solvers import Table
from ardiff_engine.diffusion.solvers.multistep import Path, dpm_solver_plus_plus
from ardiff_engine.diffusion.solvers.solver import coefficient_table
from ardiff_engine.memory import Full
from ardiff_engine.plan import blocks
from ardiff_engine.systems.calls import by_pass
from ardiff_engine.systems.system import System
from ardiff_engine.systems.trace import Trace
from ardiff_engine.systems.wan_family import Entry


def solver(timesteps: list[int]) -> Table:
    """DPM-Solver++ of order 2 over a linear schedule; clean blocks have no timestep, on record as -1."""
    alphas = NoiseSchedule.linear(1e-4, 0.02).alphas_cumprod[torch.tensor(timesteps)]
    alphas = torch.cat([alphas, torch.ones(1, dtype=torch.float64)])
    signal, sigma = alphas.sqrt(), (1 - alphas).sqrt()
    weights = dpm_solver_plus_plus(Path(signal, sigma), 2)
    own, *history = weights.data.unbind(1)
    rows = coefficient_table(x0_weights(signal[:-1], sigma[:-1], "eps"), weights.a, own, None, tuple(history))
    return Table([*map(float, timesteps), -1.0], rows, waiting=999.0)


def first_frame(block: int, frame: int) -> Callable[[Trace], Trace]:
    """Places are those of the first frame in a block; block, frame: their tokens."""

    def of(trace: Trace) -> Trace:
        return replace(trace, position=np.floor(trace.position * block / frame))

    return of


SYSTEM = System(
    name="acdit",
    title="ACDiT",
    paper="2412.07720",
    repository="thunlp/ACDiT",
    plan=blocks(1),
    solver=solver([round(i * 40) - 1 for i in range(25, 0, -1)]),
    memory=Full(),
    guidance=1.5,
    num_frames=4,
    calls_of=by_pass,
    stores_last=False,
    exact="Calls and latents. Frames are its blocks, which may be several frames or a part of one.",
    left_out="Its rotation, whose pairs turn by two angles: a network's business.",
)


def from_spec(entry: Entry) -> System:
    return replace(
        SYSTEM,
        num_frames=entry["blocks"],
        solver=solver(entry["timesteps"]),
        recorded=first_frame(entry["block_tokens"], entry["grid"] ** 2),
    )
