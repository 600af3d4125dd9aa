# SPDX-License-Identifier: Apache-2.0
"""What every solver is: one row of coefficients per level, and the timestep fed at that level.

At level k (k steps done) the network sees x and `timesteps[k]`; with its output `out`

    x̂0 = p·x + q·out, within [−limit, limit]
    x'  = a·x + b·x̂0 + e·ε + c1·h1 + c2·h2 + c3·h3

with (p, q, a, b, e, c1, c2, c3, limit) = `coefficients[k]`; h1, h2, h3 are the x̂0 of the steps before. The
arithmetic itself is `ardiff_engine.ops.solver_step`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Protocol, runtime_checkable

import torch

from ardiff_engine.arguments import instance
from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.prediction import STRAIGHT, VARIANCE_PRESERVING, check_prediction, x0_weights
from ardiff_engine.diffusion.real import is_real
from ardiff_engine.diffusion.solvers.multistep import Weights
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
        """float64 [S, 9], columns p, q, a, b, e, c1, c2, c3, limit."""

    @property
    def prediction(self) -> str:
        """The parametrisation of the network: x0, eps, v or flow."""


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
    total = instance("schedule", schedule, NoiseSchedule).num_timesteps
    try:
        steps = None if isinstance(num_steps, bool) else index(num_steps)
    except TypeError:
        steps = None
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
    ascending = torch.tensor([i * total // steps + shift for i in range(steps)], device="cpu")
    alphas = schedule.alphas_cumprod[ascending]
    last = schedule.alphas_cumprod[:1] if shift else torch.ones(1, dtype=torch.float64, device="cpu")
    return SpacedSteps(ascending.flip(0), alphas.flip(0), torch.cat([last, alphas[:-1]]).flip(0))


def coefficient_table(
    x0: tuple[torch.Tensor, torch.Tensor],
    a: torch.Tensor,
    b: torch.Tensor,
    e: torch.Tensor | None = None,
    history: tuple[torch.Tensor, ...] = (),
    clamp: float | None = None,
) -> torch.Tensor:
    """float64 [S, 9] from columns [S]: (p, q), a, b, e and c1, c2, c3; those left out are 0."""
    none = torch.zeros_like(a)
    limit = torch.full_like(a, math.inf if clamp is None else float(clamp))
    unused = [none] * (3 - len(history))
    return torch.stack([*x0, a, b, none if e is None else e, *history, *unused, limit], dim=1)


def variance_preserving_x0(steps: SpacedSteps, prediction: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(p, q) of each step. ConfigError for a parametrisation that this kind of schedule does not have."""
    check_prediction(prediction, VARIANCE_PRESERVING)
    return x0_weights(steps.alphas.sqrt(), (1 - steps.alphas).sqrt(), prediction)


def look_back(coefficients: torch.Tensor) -> int:
    """How many earlier x̂0 a table of coefficients reads: 0 to 3."""
    used = (coefficients[:, 5:8] != 0).any(dim=0).nonzero()
    return int(used.max()) + 1 if used.numel() else 0


def flow_table(sigmas: torch.Tensor, prediction: str, weights: Weights) -> torch.Tensor:
    """The rows of a multistep solver that walks through `sigmas` [S + 1]."""
    check_prediction(prediction, STRAIGHT)
    now = sigmas[:-1]
    own, *history = weights.data.unbind(1)
    return coefficient_table(x0_weights(1 - now, now, prediction), weights.a, own, None, tuple(history))


def told_timesteps(steps: torch.Tensor, commit: float, schedule: FlowSchedule) -> torch.Tensor:
    """float64 [S + 1]: the timesteps of the steps, then the one told for finished frames."""
    if not (is_real(commit) and 0 <= commit <= schedule.num_timesteps):
        raise ConfigError(
            f"commit is {commit!r}; expected a timestep in 0..{schedule.num_timesteps}, 0 for clean frames."
        )
    return torch.cat([steps, steps.new_tensor([commit])])


def listed_steps(solver: str, steps: Sequence[float], schedule: FlowSchedule) -> torch.Tensor:
    """float64 [S]: the steps of a solver that takes a list. ConfigError unless they fall within 0..T."""
    values, total = list(steps), schedule.num_timesteps
    good = bool(values) and all(is_real(t) and math.isfinite(t) and 0 <= t <= total for t in values)
    if not good or any(after >= before for before, after in zip(values, values[1:], strict=False)):
        raise ConfigError(
            f"{solver}: steps {values}; expected falling timesteps in 0..{total}, at least one."
        )
    return torch.tensor([float(t) for t in values], dtype=torch.float64, device="cpu")


def check_order(solver: str, name: str, value: int, known: tuple[int, ...]) -> None:
    if isinstance(value, bool) or value not in known:
        raise ConfigError(f"{solver}: {name} is {value!r}; expected {' or '.join(map(str, known))}.")


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
