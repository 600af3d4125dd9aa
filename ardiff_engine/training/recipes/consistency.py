# SPDX-License-Identifier: Apache-2.0
"""Causal consistency distillation (Causal-Forcing++, after Song et al. 2023): the student's estimate of the
clean frames is to be the same along the whole path of the teacher.

    x_t      = noisy frames, t from a grid of N levels
    x_s      = one guided Euler (DDIM) step of the teacher down to the next level s
    loss     = mean (f_student(x_t, t) − f_average(x_s, s))²,     f(x, clean) = x

No path has to be generated. With `teacher_forcing` = 1 teacher, student and average see clean frames before
each block, as in the paper, which draws one level for all frames (`timesteps = "shared"`). It lets the lowest
level be its own target; here the teacher's estimate is, so that the student is tied to it.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from ardiff_engine.training.guided_teacher import GuidedTeacher, History, below, grid
from ardiff_engine.training.objective import Clips
from ardiff_engine.training.recipe import Cast, Phase, Recipe
from ardiff_engine.training.taught import by_history


def recipe(cast: Cast) -> Recipe:
    task, settings = cast.task, cast.settings
    teacher = GuidedTeacher(cast.denoising(cast.teacher(), whole=True), settings.guidance_scale)
    average = copy.deepcopy(cast.student).requires_grad_(False)
    target = cast.denoising(average)
    levels = sorted(grid(settings.teacher_steps, task.schedule.num_timesteps))
    drawing = replace(task, settings=replace(task.settings, level_list=tuple(levels), logit_normal=()))

    def loss(clips: Clips, history: History | None) -> Tensor:
        drawn = drawing.levels(clips)
        noisy, t, _ = task.noised(clips, drawn)
        with torch.no_grad():
            after = below(drawn, levels)
            clean = (after < 0).to(noisy.device)[(..., *[None] * (noisy.ndim - 2))]
            t_after = task.timesteps(after.clamp(min=0)).to(t.device)
            estimate = teacher.x0(noisy, t, clips, history)
            moved = torch.where(clean, estimate, task.moved(noisy, estimate, t, t_after))
            wanted = torch.where(clean, estimate, target.x0(moved, t_after, clips.condition, history))
        found = task.x0(noisy, t, clips.condition, history)
        return (found - wanted).square().flatten(1).mean(1)

    @torch.no_grad()
    def follow() -> None:
        for slow, fast in zip(average.parameters(), cast.student.parameters(), strict=True):
            slow.lerp_(fast, 1 - settings.target_decay)

    return Recipe(
        [Phase("model", lambda clips: by_history(task, clips, loss))], {"average": average}, after=follow
    )
