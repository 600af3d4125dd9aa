# SPDX-License-Identifier: Apache-2.0
"""What the code of SkyReels-V2 does in its own way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ardiff_engine.diffusion.solvers import UniPC
from ardiff_engine.systems.trace import Trace

A, B, LAST = 2, 3, 5
"""Columns of a row: of x, of its x̂0, and of the x̂0 before."""


@dataclass(frozen=True, slots=True)
class OverwrittenUniPC(UniPC):
    """UniPC as its code and diffusers' run it; frames that have not started are fed at the first timestep.

    The first sample that both keep for the corrector is a view of the latents, which the first step
    overwrites. So the second step starts from a·x₁ + b·x̂0₀, with a and b of the first, and not from
    x₁ = a·x₀ + b·x̂0₀. Later steps keep a corrected sample, which is a tensor of its own.
    """

    def __post_init__(self) -> None:
        UniPC.__post_init__(self)
        rows = self.coefficients
        if self.num_steps > 1:
            kept = rows[1, A].clone()
            rows[1, A] *= rows[0, A]
            rows[1, LAST] += kept * rows[0, B]

    @property
    def waiting_timestep(self) -> float:
        return float(self.timesteps[0])


def told(given: int, timestep: float, frames: int) -> Callable[[Trace], Trace]:
    """Given frames are told this timestep; what is made are `frames`, without those given at the end."""

    def of(trace: Trace) -> Trace:
        timesteps = trace.timestep.copy()
        timesteps[:, :given] = np.where(trace.fed[:, :given], timestep, np.nan)
        final = None if trace.final is None else trace.final[:frames]
        return replace(trace, timestep=timesteps, final=final)

    return of
