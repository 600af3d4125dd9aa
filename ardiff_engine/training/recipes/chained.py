# SPDX-License-Identifier: Apache-2.0
"""Chained roll-outs (after Epona): the network's own estimate of the frames is the history of the next pass,
so that it learns to go on from its own mistakes.

    x̂_1  = estimate of the clean frames from the data's history (`loss.history_levels`)
    x̂_2  = estimate from other noise, with x̂_1 as history, told as clean
    loss = Σ_k mean (target_k − network_k)²

Each link has its own gradient; none goes from one to the one before.
"""

from __future__ import annotations

from torch import Tensor

from ardiff_engine.purposes import Purpose
from ardiff_engine.training.objective import Clips
from ardiff_engine.training.recipe import Cast, Phase, Recipe

LINKS = (Purpose.TRAIN, Purpose.CHAIN)
"""What each link's noise is drawn for."""


def recipe(cast: Cast) -> Recipe:
    task = cast.task

    def loss(clips: Clips) -> dict[str, Tensor]:
        history, losses = task.history(clips), {}
        levels = task.independent_levels(clips)
        for number, purpose in enumerate(LINKS):
            noisy, t, target = task.noised(clips, levels, purpose)
            output = task.predict(noisy, t, clips.condition, *history)
            losses[f"link_{number + 1}"] = (output - target).square().flatten(1).mean(1)
            history = task.clean(noisy, t, output).detach(), task.told_clean(t)
        return losses

    return Recipe([Phase("model", loss)], from_history=True)
