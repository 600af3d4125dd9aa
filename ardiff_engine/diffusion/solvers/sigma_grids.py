# SPDX-License-Identifier: Apache-2.0
"""The noise levels that samplers of the field walk through. They differ in how n points are laid between 1
and 0, which is most of the difference between one implementation of a solver and another.

A grid is n + 1 σ, the last one 0, and the n timesteps told to the network. shift(u) = s·u/(1 + (s − 1)·u):

    uniform         shift of linspace(1, 0, n + 1)          Self-Forcing, CausVid; Wan's DPM-Solver++
    below_one       shift of linspace(0.999, 0, n + 1)      Wan's UniPC; diffusers' DPM-Solver++
    above_zero      shift of linspace(1, 0.001, n + 1)      diffusers' UniPC; the first σ is held at 1 − 1e-6
    shifted_twice   shift of linspace(1, shift(0.001), n)   diffusers' FlowMatchEuler
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ardiff_engine.arguments import instance
from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SigmaGrid:
    """sigmas: float64 [S + 1], falling, the last one 0. timesteps: float64 [S], what the network is told."""

    sigmas: torch.Tensor
    timesteps: torch.Tensor


def sigma_grid(schedule: FlowSchedule, name: str, num_steps: int, *, whole: bool) -> SigmaGrid:
    """The grid of that name. whole: the network is told whole timesteps, cut off and not rounded.

    ConfigError: an unknown name, or a number of steps that is not in 1..T.
    """
    if name not in _GRIDS:
        raise ConfigError(f"sigma grid {name!r}: expected {' | '.join(_GRIDS)}.")
    most = instance("schedule", schedule, FlowSchedule).num_timesteps
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or not 1 <= num_steps <= most:
        raise ConfigError(f"number of steps {num_steps!r}: expected a whole number in 1..{most}.")
    sigmas = _GRIDS[name](schedule, num_steps)
    timesteps = sigmas * most
    return SigmaGrid(
        torch.cat([sigmas, sigmas.new_zeros(1)]),
        timesteps.floor() if whole else timesteps,
    )


def _uniform(schedule: FlowSchedule, steps: int) -> torch.Tensor:
    return schedule.shifted(_linspace(1.0, 0.0, steps + 1)[:-1])


def _below_one(schedule: FlowSchedule, steps: int) -> torch.Tensor:
    return schedule.shifted(_linspace(1 - 1 / schedule.num_timesteps, 0.0, steps + 1)[:-1])


def _above_zero(schedule: FlowSchedule, steps: int) -> torch.Tensor:
    sigmas = schedule.shifted(_linspace(1.0, 1 / schedule.num_timesteps, steps + 1)[:-1])
    return sigmas.clamp(max=1 - 1e-6)


def _shifted_twice(schedule: FlowSchedule, steps: int) -> torch.Tensor:
    lowest = float(
        schedule.shifted(torch.tensor(1 / schedule.num_timesteps, dtype=torch.float64, device="cpu"))
    )
    return schedule.shifted(_linspace(1.0, lowest, steps))


def _linspace(start: float, end: float, count: int) -> torch.Tensor:
    # NumPy's, as officially: its 0.4 is 0.3999…, and timesteps are cut off.
    return torch.from_numpy(np.linspace(start, end, count))


_GRIDS: dict[str, Callable[[FlowSchedule, int], torch.Tensor]] = {
    "uniform": _uniform,
    "below_one": _below_one,
    "above_zero": _above_zero,
    "shifted_twice": _shifted_twice,
}
