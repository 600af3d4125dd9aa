# SPDX-License-Identifier: Apache-2.0
"""Euler steps of a time that rises from 0, noise, to 1, clean: x' = x + (t' − t)·v (MAGI-1, Epona)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ardiff_engine.diffusion.real import is_real
from ardiff_engine.diffusion.solvers.solver import coefficient_table
from ardiff_engine.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RisingEuler:
    """times: S + 1 rising numbers, the first at least 0 and the last one 1; told to the network as they are.

    The network predicts v = x0 − noise, the flow with the other sign. commit: told for finished frames.
    Attributes: see `Solver`. ConfigError: times that do not rise to 1.
    """

    times: Sequence[float]
    commit: float = 1.0
    timesteps: torch.Tensor = field(init=False, repr=False, compare=False)
    coefficients: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        times = tuple(self.times)
        good = len(times) > 1 and all(is_real(t) for t in times) and 0 <= times[0] and times[-1] == 1
        if not good or any(after <= before for before, after in zip(times, times[1:], strict=False)):
            raise ConfigError(f"RisingEuler: times {times}; expected numbers that rise from 0 or more to 1")
        object.__setattr__(self, "times", times)
        t = torch.tensor(times, dtype=torch.float64, device="cpu")
        left = 1 - t[:-1]  # x̂0 = x + (1 − t)·v, so the step is a mean of x and x̂0
        share = (t[1:] - t[:-1]) / left
        table = coefficient_table((torch.ones_like(left), left), 1 - share, share)
        object.__setattr__(self, "timesteps", torch.cat([t[:-1], t.new_tensor([self.commit])]))
        object.__setattr__(self, "coefficients", table)

    @property
    def prediction(self) -> str:
        return "-flow"

    @property
    def num_steps(self) -> int:
        return len(self.times) - 1

    @property
    def waiting_timestep(self) -> float:
        return float(self.times[0])
