# SPDX-License-Identifier: Apache-2.0
"""Adversarial self-distillation (ASD): Self-Forcing, and videos of n steps are to look like the student's own
of n + 1 steps, which are nearer to them than the teacher's of many.

    D_loss = ½ [mean relu(1 − D(x_{n+1})) + mean relu(1 + D(x_n))]
    loss   = DMD(x_n) − `adversarial_weight` mean D(x_n)

x_n is a video that ends at the student's step n, drawn for each clip; at the last one there is no second
term. Both videos of a clip begin with the same noise. D is a small network beside the student (`clip_judge`).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call

from ardiff_engine.errors import ConfigError
from ardiff_engine.training.clip_judge import ClipJudge
from ardiff_engine.training.objective import Clips
from ardiff_engine.training.recipe import Cast, Phase, Recipe
from ardiff_engine.training.recipes.self_forcing import SelfForcing


def recipe(cast: Cast) -> Recipe:
    own, spec, weight = SelfForcing(cast), cast.video.spec, cast.settings.adversarial_weight
    most = len(own.solvers) - 1
    if not most:
        raise ConfigError("loss.level_list: got one step, expected two or more: n are compared with n + 1.")
    judge = ClipJudge(spec.channels // math.prod(spec.patch or (1,))).to(next(cast.student.parameters()))

    def judge_loss(clips: Clips) -> Tensor:
        ends = own.ends(clips, most)
        more, fewer = (judge(own.made(clips, [n + plus for n in ends]).frames) for plus in (1, 0))
        return 0.5 * (torch.relu(1 - more) + torch.relu(1 + fewer)).flatten(1).mean(1)

    def loss(clips: Clips) -> dict[str, Tensor]:
        ends = own.ends(clips, most + 1)
        x = own.last_step(clips, own.made(clips, ends))
        losses = {"dmd_loss": own.dmd(clips, x)}
        if rows := [row for row, end in enumerate(ends) if end < most]:
            held = {name: parameter.detach() for name, parameter in judge.named_parameters()}
            losses["step_loss"] = -weight * functional_call(judge, held, (x[rows],)).flatten(1).mean(1)
        return losses

    base = own.recipe(loss)
    return replace(
        base,
        phases=[*base.phases[:-1], Phase("judge", judge_loss), base.phases[-1]],
        networks={**base.networks, "judge": judge},
        optimizers={**base.optimizers, "judge": base.optimizers["fake_score"]},
    )
