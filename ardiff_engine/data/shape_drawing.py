# SPDX-License-Identifier: Apache-2.0
"""How the world of moving shapes is drawn: flat coloured shapes with smooth edges over a grey texture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DRAWING = 3
"""Version: raise it with every change of what is drawn. What was encoded before is then encoded anew."""
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 48, 44),
    "green": (52, 176, 72),
    "blue": (56, 92, 228),
    "yellow": (236, 206, 52),
    "purple": (164, 64, 206),
}
SHAPES = ("circle", "square", "triangle")
SQUARE = np.float32(0.886)
"""Half a side, in radii: the area of the circle."""
TRIANGLE = np.float32(2 / 3)
"""Radius of the inscribed circle, in radii."""
_GRID = 4
TEXTURE_DRAWS = 8 + _GRID**2
"""Numbers in [0, 1) that a texture is made of."""

_PALETTE = np.array(list(COLORS.values()), dtype=np.float32)


def coverage(
    shape: int, centres: NDArray[np.float64], radius: float | NDArray[np.float64], canvas: int
) -> NDArray[np.float32]:
    """Share of every pixel that a shape covers: centres [N, 2] as (x, y) in pixels, where the centre of the
    top left pixel is (0, 0) -> [N, canvas, canvas]. radius: of all, or [N].

    A circle has that radius. A square is smaller, of nearly the same area; a triangle, point up, is as high
    as the circle. All are found by the signed distance to their edges, which makes edges one pixel soft.
    """
    pixel, size = np.arange(canvas, dtype=np.float32), np.asarray(radius, dtype=np.float32)[..., None, None]
    x = np.abs(pixel - centres[:, 0, None].astype(np.float32))[:, None, :]
    y = (pixel - centres[:, 1, None].astype(np.float32))[:, :, None]
    if SHAPES[shape] == "circle":
        distance = np.hypot(x, y) - size
    elif SHAPES[shape] == "square":
        distance = np.maximum(x, np.abs(y)) - SQUARE * size
    else:
        inner = TRIANGLE * size
        lower = y - inner / 2
        distance = np.maximum(lower, x * np.float32(3**0.5 / 2) - lower / 2) - inner
    return np.clip(0.5 - distance, 0, 1)


def textures(draws: NDArray[np.float64], canvas: int) -> NDArray[np.float32]:
    """[N, TEXTURE_DRAWS] -> pictures [N, canvas, canvas, 3] of values 0..255: clouds or broad waves in
    neighbouring greys, slightly tinted, so faint that shapes are nearly all that is to be learned."""
    kind, level, strength, angle, period, *tint = draws[:, :8].T
    clouds, waves = _clouds(draws[:, 8:], canvas), _waves(angle, period, canvas)
    chosen = np.where((kind < 0.5)[:, None, None], clouds, waves)
    grey = (105 + 30 * level)[:, None, None] + (5 + 4 * strength)[:, None, None] * chosen
    tinted = grey[..., None] + 6 * (np.stack(tint, axis=-1) - 0.5)[:, None, None]
    return tinted.astype(np.float32)


def painted(pictures: NDArray[np.float32], covers: NDArray[np.float32], color: int) -> NDArray[np.float32]:
    """A shape of that color over pictures [N, H, W, 3]; covers [N, H, W]."""
    share = covers[..., None]
    return (1 - share) * pictures + share * _PALETTE[color]


def _clouds(draws: NDArray[np.float64], canvas: int) -> NDArray[np.float64]:
    """Values at the points of a coarse grid, bilinear between them: [N, canvas, canvas] in [-1, 1]."""
    place = np.linspace(0, _GRID - 1, canvas)
    weight = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(_GRID)))
    grid = 2 * draws.reshape(-1, _GRID, _GRID) - 1
    result: NDArray[np.float64] = weight @ grid @ weight.T
    return result


def _waves(angle: NDArray[np.float64], period: NDArray[np.float64], canvas: int) -> NDArray[np.float64]:
    """A sine of 40 to 80 pixels in any direction: [N, canvas, canvas]. angle: in half turns."""
    pixel = np.arange(canvas)
    turn, length = np.pi * angle[:, None, None], (40 + 40 * period)[:, None, None]
    along = pixel[None, None, :] * np.cos(turn) + pixel[None, :, None] * np.sin(turn)
    result: NDArray[np.float64] = np.sin(2 * np.pi * along / length)
    return result
