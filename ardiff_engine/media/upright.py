# SPDX-License-Identifier: Apache-2.0
"""Pictures as they are to be looked at: phones store what the sensor saw, and how it was held beside it."""

from __future__ import annotations

import numpy as np

from ardiff_engine.media.pixels import Pixels

# What a display matrix does to a step to the right and to a step down, as EXIF's orientation.
_ORIENTATIONS = {
    ((1, 0), (0, 1)): 1,
    ((-1, 0), (0, 1)): 2,
    ((-1, 0), (0, -1)): 3,
    ((1, 0), (0, -1)): 4,
    ((0, 1), (1, 0)): 5,
    ((0, 1), (-1, 0)): 6,
    ((0, -1), (-1, 0)): 7,
    ((0, -1), (1, 0)): 8,
}
# Within about 3 degrees of a quarter turn.
_SINE_OF_NOTHING = 0.05


def upright(pixels: Pixels, orientation: object) -> Pixels:
    """[H, W, 3], turned and mirrored as EXIF's orientation 1 to 8 says; anything else changes nothing."""
    match orientation:
        case 2:
            return pixels[:, ::-1]
        case 3:
            return pixels[::-1, ::-1]
        case 4:
            return pixels[::-1]
        case 5:
            return pixels.swapaxes(0, 1)
        case 6:
            return pixels[::-1].swapaxes(0, 1)
        case 7:
            return pixels[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return pixels[:, ::-1].swapaxes(0, 1)
    return pixels


def orientation_of(matrix: bytes) -> int | None:
    """EXIF's orientation for a display matrix of a video (nine int32: a b u, c d v, x y w); None if it turns
    by another angle than a quarter.

    It sends (x, y) to (a x + c y, b x + d y), so (a, b) is where a step to the right leads, (c, d) one down.
    """
    if len(matrix) != 36:
        return None
    a, b, _, c, d = np.frombuffer(matrix, np.int32, 5).astype(np.float64)
    steps = []
    for x, y in ((a, b), (c, d)):
        length = float(np.hypot(x, y))
        if length == 0 or min(abs(x), abs(y)) > _SINE_OF_NOTHING * length:
            return None
        steps.append((round(x / length), round(y / length)))
    return _ORIENTATIONS.get((steps[0], steps[1]))
