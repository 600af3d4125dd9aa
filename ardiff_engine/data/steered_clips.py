# SPDX-License-Identifier: Apache-2.0
"""Latents of moving shapes with their captions and actions, encoded when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ardiff_engine.data.clips import to_images
from ardiff_engine.data.moving_shapes import ACTIONS, MovingShapes, ShapeClip
from ardiff_engine.models.frame_vae import FrameVAE


@dataclass(frozen=True, slots=True, eq=False)
class SteeredClips:
    """latents float32 [B, F, C, h, w]; captions [B]; actions float32 [B, F, 4]: one for each arrow key, 1
    where it is held; begins bool [B]: whether a clip is the beginning of what its caption says."""

    latents: Tensor
    captions: list[str]
    actions: Tensor
    begins: Tensor


class SteeredShapes:
    """Clips by sample id, from the beginning of a scene."""

    def __init__(self, shapes: MovingShapes, vae: FrameVAE, num_frames: int) -> None:
        self.shapes, self.vae, self.num_frames = shapes, vae.eval(), num_frames

    def clips(self, samples: Sequence[int]) -> SteeredClips:
        made = self.drawn(samples)
        actions = torch.from_numpy(np.stack([clip.actions for clip in made]))
        captions, begins = [clip.scene.caption for clip in made], torch.ones(len(made), dtype=torch.bool)
        return SteeredClips(self.encoded(made), captions, keys_held(actions), begins)

    def drawn(self, samples: Sequence[int]) -> list[ShapeClip]:
        return self.shapes.batch(samples, num_frames=self.num_frames)

    @torch.no_grad()
    def encoded(self, made: Sequence[ShapeClip]) -> Tensor:
        """[B, F, C, h, w]"""
        images = to_images(np.stack([clip.video for clip in made])).flatten(0, 1).to(self.vae.mean)
        return self.vae.latents(images).unflatten(0, (len(made), -1))

    def held_out(self) -> SteeredShapes:
        return SteeredShapes(replace(self.shapes, split="held_out"), self.vae, self.num_frames)


def keys_held(actions: Tensor) -> Tensor:
    """Action numbers [...] -> float32 [..., 4]; no key: zeros."""
    return torch.nn.functional.one_hot(actions, len(ACTIONS))[..., 1:].float()
