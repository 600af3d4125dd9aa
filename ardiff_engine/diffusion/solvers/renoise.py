# SPDX-License-Identifier: Apache-2.0
"""Few steps with fresh noise between them, as distilled models are sampled (Yin et al. 2024, CausVid;
Huang et al. 2025, Self-Forcing): x' = (1 − σ')·x̂0 + σ'·ε, and x̂0 itself at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.diffusion.prediction import STRAIGHT, check_prediction, x0_weights
from ardiff_engine.diffusion.solvers.solver import coefficient_table, listed_steps, told_timesteps


@dataclass(frozen=True, slots=True)
class Renoise:
    """steps: falling timesteps, told to the network as they are; σ is that of the nearest table entry.

    Self-Forcing and its relatives list unshifted steps: `Renoise(s, s.warp([1000, 750, 500, 250]))` with
    s = FlowSchedule(5.0). CausVid does not: `Renoise(FlowSchedule(8.0), [1000, 757, 522])`.
    commit: the timestep told for finished frames (their K/V pass). Attributes: see `Solver`.
    ConfigError: no steps, steps that do not fall or are outside 0..T, an unknown prediction.
    """

    schedule: FlowSchedule
    steps: Sequence[float] = (1000.0, 750.0, 500.0, 250.0)
    prediction: str = "flow"
    commit: float = 0.0
    timesteps: torch.Tensor = field(init=False, repr=False, compare=False)
    coefficients: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_prediction(self.prediction, STRAIGHT)
        told = listed_steps("Renoise", self.steps, self.schedule)
        object.__setattr__(self, "steps", tuple(told.tolist()))
        sigmas = self.schedule.sigma(told)
        after = torch.cat([sigmas[1:], sigmas.new_zeros(1)])
        x0 = x0_weights(1 - sigmas, sigmas, self.prediction)
        table = coefficient_table(x0, torch.zeros_like(sigmas), 1 - after, after)
        object.__setattr__(self, "timesteps", told_timesteps(told, self.commit, self.schedule))
        object.__setattr__(self, "coefficients", table)

    @property
    def num_steps(self) -> int:
        return len(self.steps)

    @property
    def waiting_timestep(self) -> float:
        return float(self.schedule.num_timesteps)
