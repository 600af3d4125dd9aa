# SPDX-License-Identifier: Apache-2.0
"""Timesteps of a training batch: the rule of `ops.sample_timesteps`, with clean first frames in some of the
clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ardiff_engine.data.choice import below, uniform
from ardiff_engine.ops import sample_timesteps
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.config import DiffusionLossConfig

KNOWN_TIMESTEPS = 20


def training_timesteps(
    samples: Sequence[int], num_frames: int, num_timesteps: int, loss: DiffusionLossConfig, seed: int
) -> torch.Tensor:
    """int64 [B, F]; row i depends on (seed, samples[i]) only. `samples` are consecutive.

    With probability `known_probability` a clip has k known frames, k uniform in 1..F-1: they get one timestep
    below 20, as finished frames have while a video is generated, and the rule draws for the other F - k
    frames (never cleaner than those).
    """
    rows = sample_timesteps(
        len(samples), num_frames, num_timesteps, loss.timesteps, seed, first_sample=samples[0]
    )
    for row, sample in enumerate(samples):
        choice = uniform(seed, Purpose.KNOWN, sample, 3)
        if num_frames > 1 and choice[0] < loss.known_probability:
            known = 1 + below(choice[1], num_frames - 1)
            rest = sample_timesteps(
                1, num_frames - known, num_timesteps, loss.timesteps, seed, first_sample=sample
            )
            level = below(choice[2], min(KNOWN_TIMESTEPS, num_timesteps))
            rows[row, :known] = level
            rows[row, known:] = rest[0].clamp(min=level)
    return rows


def is_teacher_forced(micro_batch: int, loss: DiffusionLossConfig, seed: int) -> bool:
    """The same on all processes: a pass with history takes twice as long, and the slowest sets the pace."""
    return float(uniform(seed, Purpose.TEACHER, micro_batch, 1)[0]) < loss.teacher_forcing


def teacher_timesteps(
    samples: Sequence[int], num_frames: int, num_timesteps: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(timesteps [B, F] of the frames to predict, independent and uniform; [B, F - 1] of their history).

    The history of a clip has one timestep below 20, as finished frames have while a video is generated.
    """
    rows = sample_timesteps(len(samples), num_frames, num_timesteps, "iid", seed, first_sample=samples[0])
    limit = min(KNOWN_TIMESTEPS, num_timesteps)
    levels = [below(uniform(seed, Purpose.KNOWN, sample, 3)[2], limit) for sample in samples]
    return rows, torch.tensor(levels)[:, None].expand(-1, num_frames - 1)
