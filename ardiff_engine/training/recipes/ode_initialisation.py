# SPDX-License-Identifier: Apache-2.0
"""ODE initialisation (CausVid; with an autoregressive teacher: Causal-Forcing): the student jumps to the end
of the teacher's path from points on it.

    x_T = noise;  x_s = guided Euler (DDIM) step of the teacher, over a grid of N levels, down to x_0
    loss = mean (f_student(x_t, t) − x_0)²,     t one of `loss.level_list` (or of the grid), by the rule

Paths are walked as they are needed: N passes of the teacher for each clip. With `teacher_forcing` = 1 both
see clean frames before each block (Causal-Forcing); with 0 the teacher walks whole clips, and blocks of the
student stand at points of their own (CausVid, with `timesteps = "iid"` and `teacher_block` = frames).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ardiff_engine.training.guided_teacher import GuidedTeacher, History, grid
from ardiff_engine.training.objective import Clips
from ardiff_engine.training.recipe import Cast, Phase, Recipe
from ardiff_engine.training.taught import by_history


def recipe(cast: Cast) -> Recipe:
    task = cast.task
    teacher = GuidedTeacher(cast.denoising(cast.teacher(), whole=True), cast.settings.guidance_scale)
    walk = grid(cast.settings.teacher_steps, task.schedule.num_timesteps)
    points = task.settings.level_list or tuple(walk)
    walk = sorted({*walk, *points}, reverse=True)
    own = replace(task.settings, level_list=points, logit_normal=(), known_probability=0.0)
    drawing = replace(task, settings=own)

    @torch.no_grad()
    def path(clips: Clips, history: History | None, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """(the points at the wanted levels [B, F], the end), both like the frames."""
        levels = torch.full(wanted.shape, walk[0])
        x, t, _ = task.noised(clips, levels)
        point, wanted = torch.zeros_like(x), wanted.to(x.device)
        for level, after in zip(walk, [*walk[1:], None], strict=True):
            here = (wanted == level)[(..., *[None] * (x.ndim - 2))]
            point = torch.where(here, x, point)
            estimate = teacher.x0(x, t, clips, history)
            if after is None:
                return point, estimate
            t_after = task.timesteps(levels.fill_(after)).to(t.device)
            x, t = task.moved(x, estimate, t, t_after), t_after
        raise AssertionError("a path has an end")

    def loss(clips: Clips, history: History | None) -> Tensor:
        drawn = drawing.levels(clips)
        point, end = path(clips, history, drawn)
        found = task.x0(point, task.timesteps(drawn).to(point.device), clips.condition, history)
        return (found - end).square().flatten(1).mean(1)

    return Recipe([Phase("model", lambda clips: by_history(task, clips, loss))])
