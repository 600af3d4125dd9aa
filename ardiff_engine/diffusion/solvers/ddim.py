# SPDX-License-Identifier: Apache-2.0
"""DDIM (Song, Meng, Ermon 2021, equations 12 and 16)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.real import is_real
from ardiff_engine.diffusion.solvers.solver import (
    SpacedSteps,
    check_clamp,
    coefficient_table,
    fed_timesteps,
    spaced_steps,
    variance_preserving_x0,
)
from ardiff_engine.errors import ConfigError, explain


@dataclass(frozen=True, slots=True)
class DDIM:
    """x' = √ᾱ'·x̂0 + √(1 − ᾱ' − s²)·ε̂ + s·ε

    with ε̂ = (x − √ᾱ·x̂0)/√(1 − ᾱ) and s = eta·√((1 − ᾱ')/(1 − ᾱ))·√(1 − ᾱ/ᾱ'). ᾱ is taken at the fed timestep,
    ᾱ' at the next one (`spaced_steps`), rounded to float32. ε̂ follows x̂0 after clamping.
    eta 0 is deterministic, eta 1 ancestral.

    Attributes: see `Solver`. ConfigError: steps not in 1..T, eta not in 0..1, unknown prediction, bad clamp.
    """

    schedule: NoiseSchedule
    num_inference_steps: int = 50
    eta: float = 0.0
    prediction: str = "x0"
    clamp: float | None = None
    timesteps: torch.Tensor = field(init=False, repr=False, compare=False)
    coefficients: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not is_real(self.eta) or not 0 <= self.eta <= 1:
            raise ConfigError(
                explain(
                    "bad eta",
                    got=repr(self.eta),
                    expected="0 <= eta <= 1",
                    fix="0 is deterministic DDIM, 1 ancestral sampling.",
                )
            )
        check_clamp(self.clamp)
        steps = spaced_steps(self.schedule, self.num_inference_steps)
        object.__setattr__(self, "num_inference_steps", len(steps.timesteps))
        object.__setattr__(self, "timesteps", fed_timesteps(steps))
        x0 = variance_preserving_x0(steps, self.prediction)
        table = coefficient_table(x0, *_update_weights(steps, float(self.eta)), clamp=self.clamp)
        object.__setattr__(self, "coefficients", table)

    @property
    def num_steps(self) -> int:
        return self.num_inference_steps

    @property
    def waiting_timestep(self) -> float:
        return float(self.schedule.num_timesteps - 1)


def _update_weights(steps: SpacedSteps, eta: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # The official sampler takes ᾱ', and only ᾱ', from a float32 table. Near t = 0 this changes 1 − ᾱ' by 1e-4
    # of itself; with exact numbers its samples are missed by 2e-5 instead of 3e-7.
    now, after = steps.alphas, steps.alphas_next.float().double()
    e = eta * torch.sqrt((1 - after) / (1 - now) * torch.clamp(1 - now / after, min=0))
    direction = torch.sqrt(torch.clamp(1 - after - e**2, min=0))
    a = direction / torch.sqrt(1 - now)
    return a, torch.sqrt(after) - a * torch.sqrt(now), e
