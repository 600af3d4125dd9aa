# SPDX-License-Identifier: Apache-2.0
"""What every solver is: one row of coefficients per level, and the timestep fed at that level.

At level k (k steps done) the network sees x and `timesteps[k]`; with its output `out`

    x̂0 = p·x + q·out   (clamped to [−clamp, clamp] if clamp is set)
    x'  = a·x + b·x̂0 + e·ε + c1·h1 + c2·h2

with (p, q, a, b, e, c1, c2) = `coefficients[k]`; h1, h2 are earlier x̂0 of multistep solvers. The arithmetic
itself is `ardiff_engine.ops.solver_step`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import index
from typing import Protocol, runtime_checkable

import torch

from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.prediction import x0_weights
from ardiff_engine.diffusion.real import is_real
from ardiff_engine.errors import ConfigError, explain


@runtime_checkable
class Solver(Protocol):
    """The part of a solver that plans, engine and pictures use. S = num_steps."""

    @property
    def num_steps(self) -> int:
        """S: how many updates a frame needs."""

    @property
    def timesteps(self) -> torch.Tensor:
        """float64 [S+1]: the timestep fed at each level; entry S (CLEAN) is fed for finished frames."""

    @property
    def waiting_timestep(self) -> float:
        """The timestep at which frames that have not started are fed, where the mask shows them."""

    @property
    def coefficients(self) -> torch.Tensor:
        """float64 [S, 7], columns p, q, a, b, e, c1, c2."""

    @property
    def prediction(self) -> str:
        """The parametrisation of the network: x0, eps or v."""

    @property
    def clamp(self) -> float | None:
        """Limit on |x̂0|, or None."""


@dataclass(frozen=True, slots=True)
class SpacedSteps:
    """S of the T training timesteps, noisiest first.

    timesteps: int64 [S].
    alphas: float64 [S], ᾱ at each timestep.
    alphas_next: float64 [S], ᾱ of the level that the step reaches.
    """

    timesteps: torch.Tensor
    alphas: torch.Tensor
    alphas_next: torch.Tensor


def spaced_steps(schedule: NoiseSchedule, num_steps: int) -> SpacedSteps:
    """Exactly S steps for every 1 <= S <= T; ascending, t_i = ⌊i·T/S⌋ + 1 (S < T) or t_i = i (S = T).

    For S that divides T these are the DDIM timesteps of AR-Diffusion and latent diffusion: 981, 961, … 1 for
    S = 50. The last step reaches timestep t_0 − 1: for S < T the level ᾱ_0 (a finished frame keeps that trace
    of noise, as in the official sampler), for S = T no noise at all, ᾱ = 1.

    Few steps start far from pure noise, although frames start from it: this is the official formula, which
    counts from the clean end. The first timestep fed is ⌊(S − 1)·T/S⌋ + 1: for T = 1000 it is 981 for S = 50,
    751 for S = 4, 501 for S = 2, and 1 for S = 1, where the network is told that its input is all but clean.
    Use 20 steps or more unless the network was trained for fewer.
    """
    total = schedule.num_timesteps
    steps = None if isinstance(num_steps, bool) or not hasattr(num_steps, "__index__") else index(num_steps)
    if steps is None or not 1 <= steps <= total:
        raise ConfigError(
            explain(
                "bad number of inference steps",
                got=repr(num_steps),
                expected=f"a whole number in 1..{total}",
                fix="It cannot exceed the training timesteps of the schedule.",
            )
        )
    shift = 1 if steps < total else 0
    ascending = torch.tensor([i * total // steps + shift for i in range(steps)])
    alphas = schedule.alphas_cumprod[ascending]
    last = schedule.alphas_cumprod[:1] if shift else torch.ones(1, dtype=torch.float64)
    return SpacedSteps(ascending.flip(0), alphas.flip(0), torch.cat([last, alphas[:-1]]).flip(0))


def coefficient_table(
    steps: SpacedSteps, prediction: str, a: torch.Tensor, b: torch.Tensor, e: torch.Tensor
) -> torch.Tensor:
    """float64 [S, 7] from the update weights a, b, e (each [S]) of a one-step solver; c1 = c2 = 0."""
    p, q = x0_weights(steps.alphas.sqrt(), (1 - steps.alphas).sqrt(), prediction)
    unused = torch.zeros_like(a)
    return torch.stack([p, q, a, b, e, unused, unused], dim=1)


def fed_timesteps(steps: SpacedSteps) -> torch.Tensor:
    """float64 [S+1]: the spaced timesteps, then CLEAN = the last of them once more."""
    return torch.cat([steps.timesteps, steps.timesteps[-1:]]).to(torch.float64)


def check_clamp(clamp: float | None) -> None:
    """Raise ConfigError unless clamp is None or a positive finite number."""
    if clamp is not None and not (is_real(clamp) and math.isfinite(clamp) and clamp > 0):
        raise ConfigError(
            explain(
                "bad clamp",
                got=repr(clamp),
                expected="None or a number > 0",
                fix="AR-Diffusion does not clamp: use None.",
            )
        )
