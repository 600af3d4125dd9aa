# SPDX-License-Identifier: Apache-2.0
"""Which coloured shapes are where in a video of moving shapes. Nothing is trained: colors and forms are
known.

A pixel is of the color whose hue it has, if it is colourful enough; backgrounds are nearly grey. The form of
a color's pixels is the shape of the same area and centre that overlaps them most. Forms that overlap less
than `CLEAR`, such as half hidden ones, are not named.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ardiff_engine.data.moving_shapes import STEPS
from ardiff_engine.data.shape_drawing import COLORS, SHAPES, TRIANGLE, coverage
from ardiff_engine.errors import TensorError

HUE = 0.9
"""Cosine between the colour parts of a pixel and of its color."""
COLOURFUL = 0.45
"""Of its color's own length."""
SMALLEST = 40
"""Pixels of something seen; the smallest whole shape has about 145."""
CLEAR = 0.85
"""Intersection over union."""
MOVING = 0.25
"""Pixels per frame; slower is standing still."""
NOTHING = -1

_AREA = {"circle": np.pi, "square": 4 * 0.886**2, "triangle": 3 * 3**0.5 * float(TRIANGLE) ** 2}
"""Of a shape, in squares of its radius."""


@dataclass(frozen=True, slots=True)
class Tracks:
    """By frame and color, [T, colors]: centres float64 [T, colors, 2], (x, y) of the mean pixel, NaN where a
    color is not seen; shapes int64, rows of `SHAPES`, or -1 where a form is not clear; areas int64."""

    centres: NDArray[np.float64]
    shapes: NDArray[np.int64]
    areas: NDArray[np.int64]

    @property
    def seen(self) -> NDArray[np.bool_]:
        return self.areas >= SMALLEST

    def shape_of(self, color: int, frames: slice = slice(None)) -> int:
        """The form that a color has most often where it is clear; -1: it never is."""
        clear = self.shapes[frames, color]
        clear = clear[clear != NOTHING]
        return int(np.bincount(clear).argmax()) if len(clear) else NOTHING

    def direction(self, color: int, first: int, last: int) -> int:
        """Action number of the way that a color goes between two frames; 0: nowhere, or it is not seen in
        both."""
        step = (self.centres[last, color] - self.centres[first, color]) / max(1, last - first)
        along = STEPS @ step
        return int(along.argmax()) if along.max() >= MOVING else 0


def tracks(video: NDArray[np.uint8]) -> Tracks:
    """uint8 [T, H, W, 3] -> what is seen where. TensorError: another shape."""
    if video.ndim != 4 or video.shape[3] != 3 or video.dtype != np.uint8 or video.shape[1] != video.shape[2]:
        raise TensorError(f"video: got {video.dtype} {list(video.shape)}, expected uint8 [T, side, side, 3].")
    masks = color_masks(video)
    areas = masks.sum(axis=(2, 3))
    pixel = np.arange(video.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        x = (masks.sum(axis=2) * pixel).sum(axis=-1) / areas
        y = (masks.sum(axis=3) * pixel).sum(axis=-1) / areas
    centres = np.stack([x, y], axis=-1)
    centres[areas < SMALLEST] = np.nan
    shapes = np.full(areas.shape, NOTHING)
    seen = areas >= SMALLEST
    shapes[seen] = _forms(masks[seen], centres[seen], areas[seen])
    return Tracks(centres, shapes, areas)


def color_masks(video: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[T, H, W, 3] -> [T, colors, H, W]"""
    palette = _colour_part(np.array(list(COLORS.values()), dtype=np.float32))
    lengths = np.linalg.norm(palette, axis=1)
    pixels = _colour_part(video.astype(np.float32))
    along = pixels @ (palette / lengths[:, None]).T
    best, strength = along.argmax(axis=-1), along.max(axis=-1)
    length = np.sqrt((pixels**2).sum(axis=-1))
    good = (strength >= HUE * length) & (strength >= COLOURFUL * lengths[best])
    return np.stack([good & (best == color) for color in range(len(palette))], axis=1)


def _colour_part(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without the grey in it."""
    part: NDArray[np.float32] = rgb - rgb.mean(axis=-1, keepdims=True)
    return part


def _forms(
    masks: NDArray[np.bool_], centres: NDArray[np.float64], areas: NDArray[np.int64]
) -> NDArray[np.int64]:
    """masks [N, H, W] -> rows of `SHAPES` [N], -1 where none is clear."""
    overlaps = np.empty((len(SHAPES), len(masks)))
    for shape, name in enumerate(SHAPES):
        radii = (areas / _AREA[name]) ** 0.5
        middles = centres.copy()
        if name == "triangle":
            # Its mean pixel lies below the middle of its height.
            middles[:, 1] -= float(TRIANGLE) * radii / 2
        ideal = coverage(shape, middles, radii, masks.shape[1]) >= 0.5
        overlaps[shape] = (masks & ideal).sum(axis=(1, 2)) / (masks | ideal).sum(axis=(1, 2))
    return np.where(overlaps.max(axis=0) >= CLEAR, overlaps.argmax(axis=0), NOTHING)
