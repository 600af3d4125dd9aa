# SPDX-License-Identifier: Apache-2.0
"""Euler steps along the flow: x' = x + (σ' − σ)·v, the last one to σ = 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.diffusion.prediction import STRAIGHT, check_prediction, x0_weights
from ardiff_engine.diffusion.solvers.sigma_grids import sigma_grid
from ardiff_engine.diffusion.solvers.solver import coefficient_table, listed_steps, told_timesteps


@dataclass(frozen=True, slots=True)
class Euler:
    """grid: see `sigma_grids`; "uniform" is Self-Forcing's, "shifted_twice" diffusers'. steps: falling
    timesteps instead of both, told as they are; σ is that of the nearest table entry, as in `Renoise`.

    commit: the timestep told for finished frames. Attributes: see `Solver`. ConfigError: bad steps, grid or
    prediction.
    """

    schedule: FlowSchedule
    num_inference_steps: int = 50
    prediction: str = "flow"
    grid: str = "uniform"
    commit: float = 0.0
    steps: Sequence[float] = ()
    timesteps: torch.Tensor = field(init=False, repr=False, compare=False)
    coefficients: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_prediction(self.prediction, STRAIGHT)
        if len(self.steps):
            told = listed_steps("Euler", self.steps, self.schedule)
            sigmas = self.schedule.sigma(told)
            sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
            object.__setattr__(self, "steps", tuple(told.tolist()))
            object.__setattr__(self, "num_inference_steps", len(told))
        else:
            grid = sigma_grid(self.schedule, self.grid, self.num_inference_steps, whole=False)
            told, sigmas = grid.timesteps, grid.sigmas
        now = sigmas[:-1]
        keep = sigmas[1:] / now
        # v = (x − x̂0)/σ, so the step is a mean of x and x̂0.
        table = coefficient_table(x0_weights(1 - now, now, self.prediction), keep, 1 - keep)
        object.__setattr__(self, "timesteps", told_timesteps(told, self.commit, self.schedule))
        object.__setattr__(self, "coefficients", table)

    @property
    def num_steps(self) -> int:
        return self.num_inference_steps

    @property
    def waiting_timestep(self) -> float:
        return float(self.schedule.num_timesteps)
