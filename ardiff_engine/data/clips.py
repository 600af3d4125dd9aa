# SPDX-License-Identifier: Apache-2.0
"""Where a trainer gets clips of pixels from: sample ids go in, clips come out, nothing is remembered in
between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from ardiff_engine.data.choice import below, uniform
from ardiff_engine.data.moving_digits import MovingDigits
from ardiff_engine.data.moving_shapes import MovingShapes
from ardiff_engine.purposes import Purpose

WINDOW_STARTS = 48
"""Frames that a window of moving shapes may begin at."""


class ClipSource(Protocol):
    """Clips by sample id. Ids are unbounded; the same id always gives the same clip."""

    def clips(self, samples: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """float32 [B, T, 3, H, W] in [0, 1], and class ids int64 [B] where the data have classes."""
        ...

    def held_out(self) -> ClipSource:
        """The part that is never trained on."""
        ...


class DigitClips:
    """Clips of moving digits; the class is the first digit's label."""

    def __init__(self, digits: MovingDigits, num_frames: int) -> None:
        self.digits = digits
        self.num_frames = num_frames

    def clips(self, samples: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        videos, _, labels, _ = self.digits.batch(np.asarray(samples), num_frames=self.num_frames)
        return to_images(videos), torch.from_numpy(labels[:, 0])

    def held_out(self) -> DigitClips:
        return DigitClips(replace(self.digits, split="held_out"), self.num_frames)


class ShapeClips:
    """Windows of clips of moving shapes, from their first four seconds; captions and actions are not told."""

    def __init__(self, shapes: MovingShapes, num_frames: int) -> None:
        self.shapes = shapes
        self.num_frames = num_frames

    def clips(self, samples: Sequence[int]) -> tuple[torch.Tensor, None]:
        made = []
        for sample in samples:
            start = below(uniform(self.shapes.seed, Purpose.WINDOW, sample, 1)[0], WINDOW_STARTS)
            clip = self.shapes.clip(sample, num_frames=self.num_frames, first_frame=start)
            made.append(clip.video)
        return to_images(np.stack(made)), None

    def held_out(self) -> ShapeClips:
        return ShapeClips(replace(self.shapes, split="held_out"), self.num_frames)


def to_images(videos: np.ndarray) -> torch.Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] in [0, 1]."""
    return torch.from_numpy(videos).movedim(-1, -3).contiguous().float().div_(255)
