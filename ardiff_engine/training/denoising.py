# SPDX-License-Identifier: Apache-2.0
"""The usual objective of stage 2: diffusion by a rule of timesteps, and teacher forcing for a share of the
clips."""

from __future__ import annotations

from torch import Tensor

from ardiff_engine.training.objective import Clips, Denoising
from ardiff_engine.training.taught import by_history


def denoising(task: Denoising, clips: Clips) -> dict[str, Tensor]:
    """Mean (target - network)² of each clip. A share `loss.teacher_forcing` of them is predicted frame by
    frame from its history, every frame at a level of its own; the others follow the rule `loss.timesteps`."""

    def loss(own: Clips, history: tuple[Tensor, Tensor] | None) -> Tensor:
        levels = task.levels(own) if history is None else task.independent_levels(own)
        return task.error(own, levels, history)

    return by_history(task, clips, loss)
