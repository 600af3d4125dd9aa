# SPDX-License-Identifier: Apache-2.0
"""The frozen network that others are distilled from, with its guidance, and the levels that it walks down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ardiff_engine.errors import ConfigError
from ardiff_engine.training.objective import Clips, Denoising

History = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class GuidedTeacher:
    """out_null + g (out_cond − out_null), without a gradient."""

    task: Denoising
    guidance_scale: float

    @torch.no_grad()
    def x0(self, noisy: Tensor, t: Tensor, clips: Clips, history: History | None) -> Tensor:
        """ConfigError: guidance for clips whose condition has no opposite."""
        told = self.task.x0(noisy, t, clips.condition, history)
        if self.guidance_scale == 1:
            return told
        if clips.null is None:
            raise ConfigError("distillation.guidance_scale: these clips have no null condition. Set it to 1.")
        null = self.task.x0(noisy, t, clips.null, history)
        return null + self.guidance_scale * (told - null)


def grid(steps: int, num_timesteps: int) -> list[int]:
    """Falling levels, evenly spaced from the noisiest: T·(N − n)/N − 1, rounded.

    ConfigError: more steps than levels.
    """
    if steps > num_timesteps:
        raise ConfigError(
            f"distillation.teacher_steps: got {steps}, expected at most the {num_timesteps} levels there are."
        )
    return [round(num_timesteps * (steps - n) / steps) - 1 for n in range(steps)]


def below(levels: Tensor, rising: Sequence[int]) -> Tensor:
    """int64, like levels: the highest of the rising numbers below each one, −1 where there is none."""
    places = torch.searchsorted(torch.tensor(rising), levels.contiguous())
    return torch.tensor([-1, *rising])[places]
