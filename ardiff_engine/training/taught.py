# SPDX-License-Identifier: Apache-2.0
"""Which clips are predicted from a history: a share `loss.teacher_forcing`."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ardiff_engine.training.objective import Clips, Denoising


def by_history(
    task: Denoising, clips: Clips, loss: Callable[[Clips, tuple[Tensor, Tensor] | None], Tensor]
) -> dict[str, Tensor]:
    """loss(clips, history) of those that have one, "teacher_loss", and loss(clips, None) of the others,
    "diffusion_loss"."""
    share = task.settings.teacher_forcing
    taught = [row for row, sample in enumerate(clips.samples) if is_teacher_forced(sample, share)]
    losses = {}
    if taught:
        some = clips.chosen(taught)
        losses["teacher_loss"] = loss(some, task.history(some))
    if len(taught) < len(clips.samples):
        left = set(taught)
        rest = clips.chosen([row for row in range(len(clips.samples)) if row not in left])
        losses["diffusion_loss"] = loss(rest, None)
    return losses


def is_teacher_forced(sample: int, share: float) -> bool:
    """Of any n samples in a row n·share are, give or take one: a pass with history takes twice as long, and
    the slowest process sets the pace."""
    return math.floor((sample + 1) * share) > math.floor(sample * share)
