# SPDX-License-Identifier: Apache-2.0
"""Noise on the history that the network is not told of (Astra): it then relies less on what it made before.

loss = mean (target − network(x_t, t, history noised at `loss.history_levels`, told as clean))²
"""

from __future__ import annotations

from torch import Tensor

from ardiff_engine.training.objective import Clips
from ardiff_engine.training.recipe import Cast, Phase, Recipe


def recipe(cast: Cast) -> Recipe:
    task = cast.task

    def loss(clips: Clips) -> Tensor:
        history, t = task.history(clips)
        return task.error(clips, task.independent_levels(clips), (history, task.told_clean(t)))

    return Recipe([Phase("model", loss)], from_history=True)
