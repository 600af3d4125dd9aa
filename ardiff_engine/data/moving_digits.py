# SPDX-License-Identifier: Apache-2.0
"""Moving digits: real handwritten digits that fly over a black canvas at constant velocity and bounce off its
walls.

The digits are the 1797 scans of 8×8 pixels that scikit-learn ships (UCI "Optical Recognition of Handwritten
Digits"), enlarged by bicubic interpolation. A clip is a pure function of (settings, seed, split, index,
frame), so a data set has no size, needs no files, and any frame of any clip can be made at any time, in any
process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ardiff_engine.errors import DataError, explain

Split = Literal["train", "held_out"]
HELD_OUT_EVERY = 6
DRAWS_PER_DIGIT = 5


@dataclass(frozen=True, slots=True)
class DigitClip:
    """video uint8 [T, H, W, 3]; positions float64 [T, digits, 2], (x, y) of the centre of each digit's box in
    pixels, where the centre of the top left pixel is (0, 0); labels int64 [digits]; images int64 [digits],
    rows of the scans."""

    video: NDArray[np.uint8]
    positions: NDArray[np.float64]
    labels: NDArray[np.int64]
    images: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MovingDigits:
    """A random-access set of clips.

    Args:
        canvas: height and width of a frame in pixels.
        digit_size: pixels per side of a digit's box; at most `canvas`.
        digits: digits per clip; where they overlap the brighter one is seen.
        num_frames: frames per clip, unless a call says otherwise.
        min_speed, max_speed: pixels per frame; speed is uniform between them, direction is uniform.
        split: "held_out" draws from every sixth scan (300), "train" from the others (1497).
        seed: first half of the key of all randomness; the other half is the index of the clip.

    Raises:
        DataError: a digit that does not fit the canvas, or sizes and speeds that make no sense.
    """

    canvas: int = 32
    digit_size: int = 14
    digits: int = 1
    num_frames: int = 16
    min_speed: float = 1.0
    max_speed: float = 2.5
    split: Split = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.digit_size <= self.canvas:
            raise DataError(
                explain(
                    "digit_size does not fit the canvas",
                    got=f"digit_size {self.digit_size}, canvas {self.canvas}",
                    expected=f"1 <= digit_size <= {self.canvas}",
                    fix="Use a larger canvas or smaller digits.",
                )
            )
        for name in ("digits", "num_frames"):
            if getattr(self, name) < 1:
                raise DataError(
                    explain(name, got=getattr(self, name), expected=">= 1", fix="Give at least one.")
                )
        if not 0 <= self.min_speed <= self.max_speed:
            raise DataError(
                explain(
                    "speeds",
                    got=f"min_speed {self.min_speed}, max_speed {self.max_speed}",
                    expected="0 <= min_speed <= max_speed",
                    fix="Exchange or change them.",
                )
            )
        if self.split not in ("train", "held_out"):
            raise DataError(
                explain("split", got=repr(self.split), expected="'train' or 'held_out'", fix="Choose one.")
            )

    def clip(self, index: int, *, num_frames: int | None = None, first_frame: int = 0) -> DigitClip:
        """Clip `index`, frames first_frame .. first_frame + num_frames - 1."""
        videos, positions, labels, images = self.batch(
            np.array([index]), num_frames=num_frames, first_frame=first_frame
        )
        return DigitClip(videos[0], positions[0], labels[0], images[0])

    def batch(
        self, indices: NDArray[np.int64], *, num_frames: int | None = None, first_frame: int = 0
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Many clips at once: videos [B, T, H, W, 3], positions [B, T, digits, 2], labels and images [B,
        digits].

        The corner of a box starts anywhere, moves by v per frame and is folded back into [0, canvas -
        digit_size]:
        p(t) = |mod(p0 + v t, 2 r) - r| with r the range, up to the choice of origin.
        """
        frames = self.num_frames if num_frames is None else num_frames
        draws = np.stack([self._uniform(int(index)) for index in np.asarray(indices).reshape(-1)])
        pick, start, speed, angle = draws[..., 0], draws[..., 1:3], draws[..., 3], 2 * np.pi * draws[..., 4]
        scans, all_labels = _scans(self.digit_size)
        chosen = split_rows(self.split)
        images = chosen[(pick * len(chosen)).astype(np.int64)]
        speed = self.min_speed + speed * (self.max_speed - self.min_speed)
        velocity = speed[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        reach = float(self.canvas - self.digit_size)
        time = np.arange(first_frame, first_frame + frames, dtype=np.float64)
        straight = (start * 2 * reach)[:, None] + velocity[:, None] * time[None, :, None, None]
        corner = np.abs(np.mod(straight, 2 * reach) - reach) if reach else np.zeros_like(straight)
        videos = self._render(scans[images], corner)
        return videos, corner + (self.digit_size - 1) / 2, all_labels[images], images

    def _uniform(self, index: int) -> NDArray[np.float64]:
        """[digits, 5] numbers in [0, 1) from Philox with key = (seed, split) and counter = index."""
        key = np.array([self.seed % 2**64, 0 if self.split == "train" else 1], dtype=np.uint64)
        counter = np.array([0, 0, 0, index % 2**64], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
        return generator.random((self.digits, DRAWS_PER_DIGIT))

    def _render(self, scans: NDArray[np.float32], corner: NDArray[np.float64]) -> NDArray[np.uint8]:
        """scans [B, digits, s, s] at corner [B, T, digits, 2] -> [B, T, H, W, 3], bilinear between pixels."""
        pixel = np.arange(self.canvas, dtype=np.float32)
        row = np.arange(self.digit_size, dtype=np.float32)
        offset = corner[..., None, None].astype(np.float32) + row - pixel[:, None]
        weight = np.maximum(0, 1 - np.abs(offset))
        columns, rows = weight[:, :, :, 0], weight[:, :, :, 1]
        canvas = (rows @ scans[:, None] @ columns.swapaxes(-1, -2)).max(axis=2)
        grey = np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)


def split_rows(split: Split) -> NDArray[np.int64]:
    """Rows of the scans that belong to a split."""
    rows = np.arange(len(_scans(8)[1]))
    return rows[(rows % HELD_OUT_EVERY == 0) == (split == "held_out")]


@lru_cache(maxsize=8)
def _scans(size: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All scans enlarged to float32 [1797, size, size] in [0, 1], and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            explain(
                "moving digits",
                got="no scikit-learn, which holds the handwritten digits",
                expected="scikit-learn installed",
                fix="Install it: pip install scikit-learn.",
            )
        ) from error
    digits = load_digits()
    scans = torch.from_numpy(digits.images / 16.0).float()[:, None]
    if size != scans.shape[-1]:
        scans = torch.nn.functional.interpolate(scans, size=(size, size), mode="bicubic", align_corners=False)
    return scans[:, 0].clamp(0, 1).numpy(), digits.target.astype(np.int64)
