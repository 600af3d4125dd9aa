# SPDX-License-Identifier: Apache-2.0
"""Noise levels of training clips: 0 is the cleanest, num_timesteps - 1 the noisiest.

A rule couples the frames of a clip (`loss.timesteps`). It draws one level for every block of `loss.block`
frames, uniform, or from a list (`loss.level_list`: few-step students are trained on theirs), or from a
logit-normal law (`loss.logit_normal`), which both keep the order that the rule gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ardiff_engine.data.choice import below, uniform
from ardiff_engine.ops import sample_timesteps
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.config import DiffusionLossConfig

KNOWN_LEVELS = 20


def training_levels(
    samples: Sequence[int], num_frames: int, num_timesteps: int, loss: DiffusionLossConfig, seed: int
) -> Tensor:
    """int64 [B, F] by the rule of `loss`; row i depends on (seed, samples[i]) only.

    With probability `known_probability` a clip has k known blocks, k uniform in 1 .. blocks - 1: they get one
    level below 20, as finished frames have while a video is generated, and the rule draws for the others
    (never cleaner than those).
    """
    blocks = -(-num_frames // loss.block)
    rows = _drawn(samples, blocks, num_timesteps, loss, seed)
    for row, sample in enumerate(samples):
        choice = uniform(seed, Purpose.KNOWN, sample, 3)
        if blocks > 1 and choice[0] < loss.known_probability:
            known = 1 + below(choice[1], blocks - 1)
            rest = _drawn([sample], blocks - known, num_timesteps, loss, seed)
            level = below(choice[2], min(KNOWN_LEVELS, num_timesteps))
            rows[row, :known] = level
            rows[row, known:] = rest[0].clamp(min=level)
    return _of_frames(rows, num_frames, loss)


def independent_levels(
    samples: Sequence[int], num_frames: int, num_timesteps: int, loss: DiffusionLossConfig, seed: int
) -> Tensor:
    """int64 [B, F]: every block of frames at a level of its own."""
    rows = _by_rule("iid", samples, -(-num_frames // loss.block), num_timesteps, loss, seed)
    return _of_frames(rows, num_frames, loss)


def history_levels(
    samples: Sequence[int], num_frames: int, num_timesteps: int, loss: DiffusionLossConfig, seed: int
) -> Tensor:
    """int64 [B, F]: one level for the history of a clip, uniform in `loss.history_levels`, the last included;
    and the noisiest for each frame with probability `loss.history_dropped`."""
    low, high = (min(level, num_timesteps - 1) for level in loss.history_levels)
    rows = []
    for sample in samples:
        choice = uniform(seed, Purpose.KNOWN, sample, 3 + num_frames)
        level = low + below(choice[2], high - low + 1)
        dropped = choice[3:] < loss.history_dropped
        rows.append([num_timesteps - 1 if drop else level for drop in dropped])
    return torch.tensor(rows, dtype=torch.int64)


def _drawn(
    samples: Sequence[int], blocks: int, num_timesteps: int, loss: DiffusionLossConfig, seed: int
) -> Tensor:
    if loss.timesteps != "ptss":
        return _by_rule(loss.timesteps, samples, blocks, num_timesteps, loss, seed)
    coins = torch.tensor([uniform(seed, Purpose.COUPLING, sample, 1)[0] for sample in samples])
    alone, together = (
        _by_rule(rule, samples, blocks, num_timesteps, loss, seed) for rule in ("iid", "shared")
    )
    return torch.where((coins < loss.independent_probability)[:, None], alone, together)


def _by_rule(
    rule: str,
    samples: Sequence[int],
    blocks: int,
    num_timesteps: int,
    loss: DiffusionLossConfig,
    seed: int,
) -> Tensor:
    """int64 [B, blocks] by a rule of `ops.sample_timesteps`, on the scale of levels that `loss` asks for."""
    first, scale = samples[0], sorted(loss.level_list)
    span = samples[-1] - first + 1
    rows = sample_timesteps(span, blocks, len(scale) or num_timesteps, rule, seed, first_sample=first)
    rows = rows[[sample - first for sample in samples]]
    if scale:
        return torch.tensor(scale)[rows].clamp(max=num_timesteps - 1)
    if loss.logit_normal:
        mean, deviation = loss.logit_normal
        normal = torch.special.ndtri((rows.double() + 0.5) / num_timesteps)
        share = torch.sigmoid(mean + deviation * normal)
        return (share * num_timesteps).long().clamp(0, num_timesteps - 1)
    return rows


def _of_frames(rows: Tensor, num_frames: int, loss: DiffusionLossConfig) -> Tensor:
    return rows.repeat_interleave(loss.block, dim=1)[:, :num_frames].contiguous()
