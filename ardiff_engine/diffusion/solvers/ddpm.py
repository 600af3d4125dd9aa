# SPDX-License-Identifier: Apache-2.0
"""Ancestral sampling (Ho, Jain, Abbeel 2020, equation 7) over respaced steps (Nichol & Dhariwal 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.solvers.solver import (
    SpacedSteps,
    check_clamp,
    coefficient_table,
    fed_timesteps,
    spaced_steps,
    variance_preserving_x0,
)


@dataclass(frozen=True, slots=True)
class DDPM:
    """x' ~ q(x' | x, x̂0), the Gaussian with

        mean      √ᾱ'·β/(1 − ᾱ)·x̂0 + √(1 − β)·(1 − ᾱ')/(1 − ᾱ)·x
        variance  β·(1 − ᾱ')/(1 − ᾱ)

    β = 1 − ᾱ/ᾱ' belongs to the step, which may span several training timesteps. With num_inference_steps = T
    this is the posterior of the training process itself.

    Attributes: see `Solver`. ConfigError: steps outside 1..T, unknown prediction, bad clamp.
    """

    schedule: NoiseSchedule
    num_inference_steps: int = 1000
    prediction: str = "x0"
    clamp: float | None = None
    timesteps: torch.Tensor = field(init=False, repr=False, compare=False)
    coefficients: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_clamp(self.clamp)
        steps = spaced_steps(self.schedule, self.num_inference_steps)
        object.__setattr__(self, "num_inference_steps", len(steps.timesteps))
        object.__setattr__(self, "timesteps", fed_timesteps(steps))
        x0 = variance_preserving_x0(steps, self.prediction)
        table = coefficient_table(x0, *_update_weights(steps), clamp=self.clamp)
        object.__setattr__(self, "coefficients", table)

    @property
    def num_steps(self) -> int:
        return self.num_inference_steps

    @property
    def waiting_timestep(self) -> float:
        return float(self.schedule.num_timesteps - 1)


def _update_weights(steps: SpacedSteps) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    now, after = steps.alphas, steps.alphas_next
    beta = 1 - now / after
    shrink = (1 - after) / (1 - now)
    return torch.sqrt(1 - beta) * shrink, torch.sqrt(after) * beta / (1 - now), torch.sqrt(beta * shrink)
