# SPDX-License-Identifier: Apache-2.0
"""What the videos of one call of a text-to-video pipeline have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ardiff_engine.errors import TensorError
from ardiff_engine.media import Clip
from ardiff_engine.pipeline.pixels import Beside, Size
from ardiff_engine.plan import Plan
from ardiff_engine.systems import System


@dataclass(frozen=True, slots=True, eq=False)
class VideoJob:
    """What the videos of a call have in common. latents: how many; size: of a latent frame. clip: given
    frames; prefix: their latents. beside: what an image-to-video model takes beside the latents; seen:
    CLIP's tokens of the picture, for models that take these."""

    latents: int | None
    size: Size
    system: System
    clip: Clip | None
    prefix: torch.Tensor | None
    beside: Beside | None
    seen: torch.Tensor | None = None

    @property
    def given(self) -> int:
        """Pictures that are given."""
        return 0 if self.clip is None else len(self.clip.frames)

    @property
    def plan(self) -> Plan:
        return self.system.plan_of(self.latents)

    def starts(self, latents: torch.Tensor | None, videos: int, channels: int) -> torch.Tensor | None:
        """Starting noise as a user gives it. TensorError: another shape than the videos have."""
        if latents is None:
            return None
        assert self.latents is not None
        given = 0 if self.prefix is None else len(self.prefix)
        expected = (videos, self.latents - given, channels, *self.size)
        if not isinstance(latents, torch.Tensor) or tuple(latents.shape) != expected:
            got = list(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
            raise TensorError(f"latents: got {got}, expected {list(expected)}.")
        return latents
