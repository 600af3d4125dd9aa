# SPDX-License-Identifier: Apache-2.0
"""What the code of ACDiT does in its own way."""

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
from ardiff_engine.systems.trace import Trace


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
