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
from dataclasses import replace

import torch
from torch import Tensor

from ardiff_engine.data.choice import below
from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.errors import ConfigError
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.guided_teacher import GuidedTeacher
from ardiff_engine.training.objective import Clips
from ardiff_engine.training.optimizer import Optimizer
from ardiff_engine.training.recipe import Cast, Phase, Recipe
from ardiff_engine.training.roll_out import RollOut, roll_out

SCORED = (0.02, 0.98)
"""Shares of the noisiest timestep at which videos are scored."""


def recipe(cast: Cast) -> Recipe:
    task, schedule = cast.denoising(cast.student, held_history=True), cast.task.schedule
    levels = sorted(task.settings.level_list, reverse=True)
    if not isinstance(schedule, FlowSchedule):
        raise ConfigError("loss.objective = 'self_forcing': expected a network that predicts a flow.")
    if not levels or levels[0] != schedule.num_timesteps - 1 or len(set(levels)) < len(levels):
        raise ConfigError(
            f"loss.level_list: got {tuple(levels)}, expected the student's steps, from the noisiest, "
            f"{schedule.num_timesteps - 1}, on."
        )
    steps = task.timesteps(torch.tensor(levels)).tolist()
    solvers = [Renoise(schedule, steps[: n + 1], task.settings.prediction) for n in range(len(steps))]
    real = GuidedTeacher(cast.denoising(cast.teacher(), whole=True), cast.settings.guidance_scale)
    network = copy.deepcopy(cast.teacher()).requires_grad_(True)
    fake = cast.denoising(network, whole=True)
    settings = replace(cast.optimizer, lr=cast.settings.fake_lr or cast.optimizer.lr)
    every = task.timesteps(torch.arange(schedule.num_timesteps)) / schedule.num_timesteps
    scored = torch.nonzero((every >= SCORED[0]) & (every <= SCORED[1])).flatten()

    def made(clips: Clips) -> RollOut:
        ends = [below(share, len(solvers)) for share in clips.uniform(Purpose.EXIT, 1)[:, 0].tolist()]
        return roll_out(
            cast.video,
            cast.asked(clips),
            [solvers[end] for end in ends],
            clips.frames,
            task.settings.block,
            clips.seed,
            clips.samples,
        )

    def score_levels(clips: Clips) -> Tensor:
        share = clips.uniform(Purpose.SCORE_LEVEL, 1)
        drawn = (share * schedule.num_timesteps).long().clamp(int(scored[0]), int(scored[-1]))
        return drawn.expand(-1, clips.frames.shape[1]).contiguous()

    def fake_loss(clips: Clips) -> Tensor:
        return fake.error(replace(clips, frames=made(clips).frames), score_levels(clips))

    def loss(clips: Clips) -> Tensor:
        video = made(clips)
        history = video.frames, torch.zeros_like(video.t)
        x = task.x0(video.noisy, video.t, clips.condition, history)
        with torch.no_grad():
            own = replace(clips, frames=x.detach())
            noisy, t, _ = task.noised(own, score_levels(clips), Purpose.SCORE)
            wanted = real.x0(noisy, t, clips, None)
            gap = (x - wanted).abs().flatten(1).mean(1)
            pull = fake.x0(noisy, t, clips.condition) - wanted
            pull = torch.nan_to_num(pull / gap[(..., *[None] * (x.ndim - 1))])
        return 0.5 * (x - (x - pull).detach()).square().flatten(1).mean(1)

    return Recipe(
        [Phase("fake_score", fake_loss)] * cast.settings.fake_updates + [Phase("model", loss)],
        {"fake_score": network},
        {"fake_score": Optimizer(network, settings, cast.run.steps)},
    )
