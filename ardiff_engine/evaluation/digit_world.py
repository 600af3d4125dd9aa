# SPDX-License-Identifier: Apache-2.0
"""Moving digits for `trained_digits`: their latents, how they look, and held-out clips to continue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ardiff_engine.data.config import DataConfig
from ardiff_engine.data.encoded_clips import CachedClips, EncodedClips
from ardiff_engine.data.moving_digits import MovingDigits
from ardiff_engine.data.sources import clip_source
from ardiff_engine.evaluation.digit_measures import (
    FIRST,
    MEASURES,
    Measure,
    Values,
    measure_continuations,
    stretches,
)
from ardiff_engine.evaluation.digit_results import REBUILT, SHOWN
from ardiff_engine.evaluation.motion import unsteadiness
from ardiff_engine.evaluation.spoiled import SPOILED
from ardiff_engine.evaluation.worlds import FRAMES, GIVEN, LONG, TOGETHER, Video
from ardiff_engine.models import TiTok, from_tokens, regroup, to_tokens
from ardiff_engine.pipeline.files import ASSETS
from ardiff_engine.weights import load_titok

DIGITS = MovingDigits(canvas=32, digit_size=18)
"""Those of the bundled autoencoder."""


@cache
def autoencoder() -> TiTok:
    """That of the bundled model."""
    return load_titok(ASSETS / "moving-digits" / "vae").eval().requires_grad_(False)


class DigitWorld:
    """See `World`: a frame is the tokens of the autoencoder as one."""

    name = "digits"

    @property
    def numbers(self) -> int:
        vae = autoencoder().config
        return vae.num_latent_tokens * vae.token_size

    def source(self, clips: int, seed: int, path: Path) -> CachedClips:
        data = DataConfig(num_frames=LONG, digits=DIGITS)
        encoded = EncodedClips(clip_source(data, DIGITS.canvas), autoencoder())
        return CachedClips(encoded, clips, FRAMES, seed, path, repr((DIGITS, LONG)))

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> Video:
        """[N, T, 1, 64] -> uint8 [N, T, 32, 32, 3]."""
        tokens = regroup(latents, autoencoder().config.num_latent_tokens)
        decoded = [autoencoder().decode(from_tokens(part)) for part in tokens.split(TOGETHER)]
        return (torch.cat(decoded).clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).numpy()

    def held_out(self, clips: int, frames: int) -> HeldOutDigits:
        return HeldOutDigits(self, clips, frames)


class HeldOutDigits:
    """clips real ones. truth: the frames that are to be made; given: latents of those before."""

    measures: Mapping[str, Measure] = {name: MEASURES[name] for name in SHOWN if name in MEASURES}

    def __init__(self, world: DigitWorld, clips: int, frames: int = FRAMES) -> None:
        self._world = world
        videos = replace(DIGITS, split="held_out").batch(np.arange(clips), num_frames=frames)[0]
        self.last, self.truth = videos[:, GIVEN - 1], videos[:, GIVEN:]
        self._from_last = videos[:, GIVEN - 1 :]
        pictures = torch.from_numpy(videos).movedim(-1, -3).float() / 255
        with torch.no_grad():
            tokens = torch.cat([to_tokens(autoencoder().encode(part)) for part in pictures.split(TOGETHER)])
        self._tokens = tokens
        self.given = regroup(tokens[:, :GIVEN], 1)

    def measured(self, made: Video) -> Values:
        found = dict(measure_continuations(self.last, made, self.truth))
        found["unsteadiness"] = unsteadiness(made)
        kept = {name: found[name] for name in self.measures}
        if made.shape[1] > FIRST:
            kept |= stretches(made, self.truth)
        return {name: np.round(values, 3) for name, values in kept.items()}

    def references(self) -> dict[str, Values]:
        """The true frames, their reconstructions, and spoiled ones, as "frozen", the last given frame
        held."""
        rows = {"real clips": self.truth, REBUILT: self._world.pixels(regroup(self._tokens[:, GIVEN:], 1))}
        rows |= {name: spoil(self._from_last)[:, 1:] for name, spoil in SPOILED.items()}
        return {name: self.measured(made) for name, made in rows.items()}
