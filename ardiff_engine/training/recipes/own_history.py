# SPDX-License-Identifier: Apache-2.0
"""A history like the one that a long roll-out leaves: noisy, too strong or too weak, or the network's own.

    h    = g (x0 + s ε),  log g normal, s by `loss.history_levels`, told as clean
    h'   = in half of the clips the network's own estimate of the clean frames from h, without a gradient:
           once, or noised again and estimated again, up to three times, each time with the last one as h
    loss = mean (target − network(x_t, t, h'))²

The noise is added and nothing is taken away. A noised history of a flow, (1 − σ) x0 + σ ε, that the network
is not told of has less of the data in it than the frames that are to follow: a network learns to make what
it sees stronger, and in a long video it does so block after block.

Own estimates take the place of the data where they are more than guesses: in first blocks, which have no
history, from the cleaner half of the levels. One estimate from noised data is drawn back to it; what grows in
a long video is seen after several. First blocks of clips that do not begin with what their caption
says (`condition.begins`, where there is one) are seen and not learned; a share `loss.first_blocks` of those
that do is cut to its first block, and counts as that one block.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ardiff_engine.errors import ConfigError
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.objective import Clips, Denoising
from ardiff_engine.training.recipe import Cast, Phase, Recipe
from ardiff_engine.training.taught import is_teacher_forced

GAIN = 0.1
"""Deviation of log g."""
OWN = 0.5
"""Share of clips whose history is the network's own."""
PASSES = 3
"""Estimates that such a history has been through, at most."""


def recipe(cast: Cast) -> Recipe:
    """ConfigError: a history without any of the data, which cannot be brought to their strength."""
    task, block = cast.task, cast.task.settings.block
    _check_levels(task)

    def of_frames(clips: Clips) -> Tensor:
        history, told = with_own(task, clips, *spoiled(task, clips))
        noisy, t, target = task.noised(clips, task.independent_levels(clips))
        output = task.predict(noisy, t, clips.condition, history, told)
        error = (output - target).square().flatten(2).mean(2)
        return (error * learned(clips, block)).mean(1)

    def loss(clips: Clips) -> Tensor | dict[str, Tensor]:
        cut = first_blocks(clips, task.settings.first_blocks)
        rest = [row for row in range(len(clips.samples)) if row not in set(cut)]
        losses = {"clip_loss": of_frames(clips.chosen(rest))} if rest else {}
        if cut:
            alone = clips.chosen(cut).first(block)
            share = block / clips.frames.shape[1]
            losses["first_loss"] = share * task.error(alone, task.independent_levels(alone))
        return losses if cut else losses["clip_loss"]

    return Recipe([Phase("model", loss)], from_history=True)


def spoiled(task: Denoising, clips: Clips) -> tuple[Tensor, Tensor]:
    """(h, the timesteps of clean frames)"""
    noisy, t = task.history(clips)
    signal = task.schedule.signal(t).to(noisy.device, noisy.dtype)
    gain = (GAIN * torch.special.ndtri(clips.uniform(Purpose.GAIN, 1).clamp(1e-6, 1 - 1e-6))).exp()
    scale = gain.to(noisy.device, noisy.dtype) / signal
    return noisy * _each(scale, noisy), task.told_clean(t)


@torch.no_grad()
def with_own(task: Denoising, clips: Clips, given: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """(h', the timesteps of clean frames)"""
    passes = 1 + (PASSES * clips.uniform(Purpose.PASSES, 1)[:, 0]).long()
    own = torch.tensor([is_teacher_forced(sample, OWN) for sample in clips.samples])
    frames, history = clips.frames.clone(), given.clone()
    for number in range(PASSES):
        rows = torch.nonzero(own & (passes > number))[:, 0].tolist()
        if not rows:
            break
        some = replace(clips.chosen(rows), frames=frames[rows], seed=clips.seed + number)
        levels = task.independent_levels(some)
        noisy, t, _ = task.noised(some, levels, Purpose.CHAIN)
        estimate = task.x0(noisy, t, some.condition, (history[rows], told[rows]))
        guesses = levels >= task.schedule.num_timesteps // 2
        guesses[:, task.settings.block :] = False
        guesses = _each(guesses.to(estimate.device), estimate)
        history[rows] = torch.where(guesses, history[rows], estimate)
        frames[rows] = torch.where(guesses, frames[rows], estimate)
    return history, told


def first_blocks(clips: Clips, share: float) -> list[int]:
    """Rows of clips that begin with what their caption says and are cut to their first block."""
    begins = getattr(clips.condition, "begins", None)
    cut = clips.uniform(Purpose.CUT, 1)[:, 0] < share
    return torch.nonzero(cut if begins is None else cut & begins.cpu())[:, 0].tolist()


def learned(clips: Clips, block: int) -> Tensor:
    """[B, F]: 1, and 0 in first blocks of clips that go on with what began before."""
    counted = clips.frames.new_ones(clips.frames.shape[:2])
    begins = getattr(clips.condition, "begins", None)
    if begins is not None:
        counted[~begins, :block] = 0
    return counted


def _check_levels(task: Denoising) -> None:
    settings, noisiest = task.settings, task.schedule.num_timesteps - 1
    if settings.history_dropped:
        raise ConfigError(
            f"loss.history_dropped: got {settings.history_dropped}, expected 0 with objective 'own_history': "
            "a dropped frame has nothing of the data in it that could be made as strong. Leave it out, or "
            "use 'told_clean'."
        )
    last = min(settings.history_levels[1], noisiest)
    if not task.schedule.signal(task.timesteps(torch.tensor([last]))).item() > 0:
        raise ConfigError(
            f"loss.history_levels: got {settings.history_levels}, expected a last level below {noisiest} "
            "with objective 'own_history': the noisiest one of a flow has nothing of the data. Lower it."
        )


def _each(rows: Tensor, frames: Tensor) -> Tensor:
    """[B, F] -> [B, F, 1, ...]"""
    return rows[(..., *[None] * (frames.ndim - 2))]
