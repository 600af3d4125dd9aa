# SPDX-License-Identifier: Apache-2.0
"""Guidance of a model with two transformers: a scale for each of them."""

from __future__ import annotations

from ardiff_engine.arguments import number
from ardiff_engine.diffusion.guidance import Branch, Condition
from ardiff_engine.engine.schedules import Tracks, tracks_of
from ardiff_engine.errors import ConfigError
from ardiff_engine.models.wan import WanExperts, WanTransformer

Scales = tuple[float, float]
"""For high noise, and for low."""


def checked_scales(
    model: WanTransformer | WanExperts, scale: float, scale_2: float | None, negative_prompt: object = None
) -> Scales:
    """scale_2: of the transformer for low noise; None: the same. ConfigError: no numbers, a second one for a
    model with one transformer, or a negative prompt that nothing would be led away from."""
    high = low = number("guidance_scale", scale)
    if scale_2 is not None:
        if not isinstance(model, WanExperts):
            raise ConfigError("guidance_scale_2 is for models with two transformers; this one has one.")
        low = number("guidance_scale_2", scale_2)
    if negative_prompt is not None and high == low == 1:
        raise ConfigError(
            "negative_prompt: got one, and guidance_scale 1, which switches guidance off. Leave it out, or "
            "give another guidance_scale."
        )
    return high, low


def branches_of(
    condition: Condition, negative: Condition, scales: Scales, solver: Tracks, model: WanExperts
) -> tuple[Branch, ...]:
    """Classifier-free guidance with the scale of the transformer that runs at each step."""
    weights = [
        [scales[bool(t < model.boundary)] for t in own.timesteps[: own.num_steps].tolist()]
        for own in tracks_of(solver)
    ]
    against = [[1 - weight for weight in track] for track in weights]
    return Branch(condition, weights), Branch(negative, against)
