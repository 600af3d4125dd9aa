# SPDX-License-Identifier: Apache-2.0
"""The usual objective of stage 2: diffusion by a rule of timesteps, and teacher forcing for a share of the
clips."""

from __future__ import annotations

import math

from torch import Tensor

from ardiff_engine.training.objective import Clips, Denoising


def denoising(task: Denoising, clips: Clips) -> dict[str, Tensor]:
    """Mean (target - network)² of each clip. A share `loss.teacher_forcing` of them is predicted frame by
    frame from its history, every frame at a level of its own; the others follow the rule `loss.timesteps`."""
    share = task.settings.teacher_forcing
    taught = [row for row, sample in enumerate(clips.samples) if is_teacher_forced(sample, share)]
    losses = {}
    if taught:
        some = clips.chosen(taught)
        losses["teacher_loss"] = task.error(some, task.independent_levels(some), task.history(some))
    if len(taught) < len(clips.samples):
        left = set(taught)
        rest = clips.chosen([row for row in range(len(clips.samples)) if row not in left])
        losses["diffusion_loss"] = task.error(rest, task.levels(rest))
    return losses


def is_teacher_forced(sample: int, share: float) -> bool:
    """Of any n samples in a row n·share are, give or take one: a pass with history takes twice as long, and
    the slowest process sets the pace."""
    return math.floor((sample + 1) * share) > math.floor(sample * share)
