# SPDX-License-Identifier: Apache-2.0
"""Self-Forcing (Huang et al. 2025) with the loss of DMD (Yin et al. 2024): the student learns on its own
videos.

    x     = its video, block by block, each from the blocks that it has made; steps of `loss.level_list`
    x_t   = x with noise of one level
    g     = (f_fake(x_t, t) − f_real(x_t, t)) / mean |x − f_real(x_t, t)|
    loss  = ½ mean (x − (x − g).detach())²,   whose gradient at x is g over the number of values

f_real is the teacher with its guidance, f_fake is trained on the student's videos: `fake_updates` steps for
each one of the student. A video ends at one of its steps, drawn for each clip; only this step has a gradient,
and the keys and values of earlier blocks have none. An engine makes the video.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ardiff_engine.data.choice import below
from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.errors import ConfigError
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.guided_teacher import GuidedTeacher
from ardiff_engine.training.objective import Clips, Losses
from ardiff_engine.training.recipe import Cast, Phase, Recipe
from ardiff_engine.training.roll_out import RollOut, roll_out

SCORED = (0.02, 0.98)
"""Shares of the noisiest timestep at which videos are scored."""


class SelfForcing:
    """The student's own videos and what DMD says of them."""

    def __init__(self, cast: Cast) -> None:
        """ConfigError: a network that predicts no flow, or steps that make no video."""
        self.cast, schedule = cast, cast.task.schedule
        self.task = task = cast.denoising(cast.student, held_history=True)
        levels = sorted(task.settings.level_list, reverse=True)
        if not isinstance(schedule, FlowSchedule):
            raise ConfigError(
                f"loss.objective = {task.settings.objective!r}: expected a network that predicts a flow."
            )
        if not levels or levels[0] != schedule.num_timesteps - 1 or len(set(levels)) < len(levels):
            raise ConfigError(
                f"loss.level_list: got {tuple(levels)}, expected the student's steps, from the noisiest, "
                f"{schedule.num_timesteps - 1}, on."
            )
        steps = task.timesteps(torch.tensor(levels)).tolist()
        self.solvers = [
            Renoise(schedule, steps[: n + 1], task.settings.prediction) for n in range(len(steps))
        ]
        self.real = GuidedTeacher(cast.denoising(cast.teacher(), whole=True), cast.settings.guidance_scale)
        self.fake_network = copy.deepcopy(cast.teacher()).requires_grad_(True)
        self.fake = cast.denoising(self.fake_network, whole=True)
        every = task.timesteps(torch.arange(schedule.num_timesteps)) / schedule.num_timesteps
        scored = torch.nonzero((every >= SCORED[0]) & (every <= SCORED[1])).flatten()
        self.scored = int(scored[0]), int(scored[-1])

    def ends(self, clips: Clips, steps: int) -> list[int]:
        """For each clip one of the first `steps` steps, at which its video ends."""
        return [below(share, steps) for share in clips.uniform(Purpose.EXIT, 1)[:, 0].tolist()]

    def made(self, clips: Clips, ends: Sequence[int]) -> RollOut:
        cast, solvers = self.cast, [self.solvers[end] for end in ends]
        block = self.task.settings.block
        return roll_out(
            cast.video, cast.asked(clips), solvers, clips.frames, block, clips.seed, clips.samples
        )

    def last_step(self, clips: Clips, video: RollOut) -> Tensor:
        """The video once more, with a gradient through the last step of each block."""
        history = video.frames, torch.zeros_like(video.t)
        return self.task.x0(video.noisy, video.t, clips.condition, history)

    def dmd(self, clips: Clips, x: Tensor) -> Tensor:
        """[B]"""
        with torch.no_grad():
            own = replace(clips, frames=x.detach())
            noisy, t, _ = self.task.noised(own, self._score_levels(clips), Purpose.SCORE)
            wanted = self.real.x0(noisy, t, clips, None)
            gap = (x - wanted).abs().flatten(1).mean(1)
            pull = self.fake.x0(noisy, t, clips.condition) - wanted
            pull = torch.nan_to_num(pull / gap[(..., *[None] * (x.ndim - 1))])
        return 0.5 * (x - (x - pull).detach()).square().flatten(1).mean(1)

    def fake_loss(self, clips: Clips) -> Tensor:
        video = self.made(clips, self.ends(clips, len(self.solvers)))
        return self.fake.error(replace(clips, frames=video.frames), self._score_levels(clips))

    def recipe(self, loss: Callable[[Clips], Losses]) -> Recipe:
        """loss: the student's."""
        settings, own = self.cast.settings, self.cast.optimizer
        return Recipe(
            [Phase("fake_score", self.fake_loss)] * settings.fake_updates + [Phase("model", loss)],
            {"fake_score": self.fake_network},
            {"fake_score": replace(own, lr=settings.fake_lr or own.lr)},
        )

    def _score_levels(self, clips: Clips) -> Tensor:
        share = clips.uniform(Purpose.SCORE_LEVEL, 1)
        drawn = (share * self.task.schedule.num_timesteps).long().clamp(*self.scored)
        return drawn.expand(-1, clips.frames.shape[1]).contiguous()


def recipe(cast: Cast) -> Recipe:
    own = SelfForcing(cast)

    def loss(clips: Clips) -> Tensor:
        video = own.made(clips, own.ends(clips, len(own.solvers)))
        return own.dmd(clips, own.last_step(clips, video))

    return own.recipe(loss)
