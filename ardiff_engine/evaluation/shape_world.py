# SPDX-License-Identifier: Apache-2.0
"""Moving shapes for `trained_digits`: their latents, how they look, and held-out clips to continue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ardiff_engine.data.moving_shapes import MovingShapes
from ardiff_engine.data.steered_clips import SteeredShapes
from ardiff_engine.data.stored_shapes import StoredShapes
from ardiff_engine.evaluation.digit_measures import Measure, Values
from ardiff_engine.evaluation.digit_results import REBUILT
from ardiff_engine.evaluation.shape_measures import SHAPE_MEASURES, centres_and_forms, measure_shapes
from ardiff_engine.evaluation.spoiled import SPOILED
from ardiff_engine.evaluation.worlds import FRAMES, GIVEN, LONG, TOGETHER, Video
from ardiff_engine.models.frame_vae import SCALE, FrameVAE
from ardiff_engine.models.pictures import to_uint8
from ardiff_engine.pipeline.files import ASSETS
from ardiff_engine.weights import load_model

SHAPES = MovingShapes(pairs=0.0, steered=0.0)
"""One shape that no key moves: what it does follows from the given frames."""
DEVIATION = 0.5
"""Of latents as networks learn them: that of digits. The autoencoder's have 1."""


@cache
def autoencoder() -> FrameVAE:
    """That of the bundled model."""
    found = load_model(ASSETS / "moving-shapes" / "vae").requires_grad_(False)
    assert isinstance(found, FrameVAE)
    return found


class ShapeWorld:
    """See `World`: a frame is the latents of the autoencoder as one token."""

    name = "shapes"

    @property
    def numbers(self) -> int:
        return autoencoder().config.channels * (SHAPES.canvas // SCALE) ** 2

    def source(self, clips: int, seed: int, path: Path) -> ShapeLatents:
        encoded = SteeredShapes(SHAPES, autoencoder(), LONG)
        return ShapeLatents(StoredShapes(encoded, clips, FRAMES, seed, path, beginnings=0.0))

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> Video:
        """[N, T, 1, 256] -> uint8 [N, T, 64, 64, 3]."""
        side = SHAPES.canvas // SCALE
        frames = (latents / DEVIATION).reshape(-1, autoencoder().config.channels, side, side)
        decoded = [to_uint8(autoencoder().images(part)) for part in frames.split(TOGETHER)]
        return torch.cat(decoded).unflatten(0, latents.shape[:2]).numpy()

    def held_out(self, clips: int, frames: int) -> HeldOutShapes:
        return HeldOutShapes(self, clips, frames)


class ShapeLatents:
    """A `LatentSource` of clips of shapes: [B, F, 1, 256], nothing of captions and keys."""

    def __init__(self, source: StoredShapes | SteeredShapes) -> None:
        self._source = source

    def latents(self, samples: Sequence[int]) -> tuple[Tensor, None]:
        return _as_tokens(self._source.clips(samples).latents), None

    def held_out(self) -> ShapeLatents:
        return ShapeLatents(self._source.held_out())


class HeldOutShapes:
    """clips real ones; given: latents of the frames before those that are to be made."""

    measures: Mapping[str, Measure] = SHAPE_MEASURES

    def __init__(self, world: ShapeWorld, clips: int, frames: int = FRAMES) -> None:
        self._world = world
        source = SteeredShapes(replace(SHAPES, split="held_out"), autoencoder(), frames)
        drawn = source.drawn(range(clips))
        self._tokens = torch.cat(
            [_as_tokens(source.encoded(drawn[n : n + TOGETHER])) for n in range(0, clips, TOGETHER)]
        )
        self._from_last = np.stack([clip.video[GIVEN - 1 :] for clip in drawn])
        self._scenes = [clip.scene for clip in drawn]
        self._truth = centres_and_forms(self._from_last, self._scenes)[0]
        self.given = self._tokens[:, :GIVEN]

    def measured(self, made: Video) -> Values:
        found = measure_shapes(made, self._scenes, self._truth)
        return {name: np.round(values, 3) for name, values in found.items()}

    def references(self) -> dict[str, Values]:
        rows = {"real clips": self._from_last[:, 1:], REBUILT: self._world.pixels(self._tokens[:, GIVEN:])}
        rows |= {name: spoil(self._from_last)[:, 1:] for name, spoil in SPOILED.items()}
        return {name: self.measured(made) for name, made in rows.items()}


def _as_tokens(latents: Tensor) -> Tensor:
    """[..., channels, h, w] -> [..., 1, channels h w]"""
    return DEVIATION * latents.flatten(-3)[..., None, :]
