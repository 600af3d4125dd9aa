# SPDX-License-Identifier: Apache-2.0
"""Where the digit is, and how far from where it should be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ardiff_engine.errors import TensorError, explain

BACKGROUND = 32
EMPTY = 255.0


def centroids(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """uint8 [..., H, W, 3] -> float64 [..., 2], (x, y) of the centre of brightness in pixels; NaN for
    (nearly) black frames.

    Pixels below 32 of 255 count as background, so that a faint haze does not move the centre.
    """
    light = frames[..., 0].astype(np.float64)
    light[light < BACKGROUND] = 0
    mass = light.sum(axis=(-1, -2))
    x = (light * np.arange(light.shape[-1])).sum(axis=(-1, -2))
    y = (light * np.arange(light.shape[-2])[:, None]).sum(axis=(-1, -2))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.stack([x, y], axis=-1) / mass[..., None]
    found[mass < EMPTY] = np.nan
    return found


def position_errors(frames: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Distance in pixels between the centroids of two videos, per frame; the canvas diagonal where the digit
    has vanished."""
    if frames.shape != truth.shape:
        raise TensorError(
            explain(
                "frames",
                got=frames.shape,
                expected=truth.shape,
                fix="Compare videos of the same length and size.",
            )
        )
    error = np.linalg.norm(centroids(frames) - centroids(truth), axis=-1)
    return np.where(np.isnan(error), np.hypot(*frames.shape[-3:-1]), error)
