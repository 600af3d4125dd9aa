# SPDX-License-Identifier: Apache-2.0
"""How the digit moves: where it is, how fast, how steadily, and how far from where it should be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ardiff_engine.errors import TensorError, explain

BACKGROUND = 32
EMPTY = 255.0
TURNING = 0.25


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


def speeds(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean length of the step between frames, pixels: [N, T, H, W, 3] -> [N]. A frozen clip has 0."""
    return _mean(np.linalg.norm(_velocities(frames), axis=-1))


def unsteadiness(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Median over frames and axes of the change of velocity, pixels per frame²: [N, T, H, W, 3] -> [N].

    Digits fly straight and bounce. A bounce changes one axis for two frames, and no axis has one more often
    than every fifth frame, so that the median sees none. A frozen clip has 0: read it beside the speed.
    """
    change = np.abs(np.diff(_velocities(frames), axis=1)).reshape(len(frames), -1)
    return np.array([np.nan if np.isnan(row).all() else np.nanmedian(row) for row in change])


def velocity_errors(frames: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean distance of the steps of two videos, pixels per frame: [N, T, H, W, 3] twice -> [N]."""
    return steps_apart(centroids(frames), centroids(truth))


def steps_apart(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same of centres: [N, T, 2] twice -> [N]."""
    return _mean(np.linalg.norm(np.diff(ours, axis=1) - np.diff(theirs, axis=1), axis=-1))


def bounces_agreed(frames: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.float64]:
    """2 m / (a + b) with a and b the bounces of the two videos and m those that both have, at most one frame
    apart and the same way: [N, T, H, W, 3] twice -> [N], 1 for all, 0 for none, NaN where neither has any."""
    return turns_agreed(centroids(frames), centroids(truth))


def turns_agreed(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same of centres: [N, T, 2] twice -> [N]."""
    out = np.full(len(ours), np.nan)
    for clip, (one, other) in enumerate(zip(np.diff(ours, axis=1), np.diff(theirs, axis=1), strict=True)):
        own, true = _bounces(one), _bounces(other)
        if own or true:
            both = sum(any((frame + late, turn) in own for late in (-1, 0, 1)) for frame, turn in true)
            out[clip] = min(1.0, 2 * both / (len(own) + len(true)))
    return out


def _velocities(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.diff(centroids(frames), axis=-2)


def _bounces(velocity: NDArray[np.float64]) -> set[tuple[int, tuple[int, int]]]:
    """velocity [T - 1, 2] -> (frame, (axis, new sign)) wherever an axis turns. Steps below a quarter of a
    pixel, which the frame of a bounce itself may have, keep the sign before them."""
    turns = set()
    for axis in range(2):
        before = 0
        for frame, step in enumerate(velocity[:, axis]):
            sign = int(np.sign(step)) if abs(step) > TURNING else before  # False for NaN
            if before and sign != before:
                turns.add((frame, (axis, sign)))
            before = sign
    return turns


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over frames, without those where the digit has vanished; NaN where it never is there."""
    return np.array([np.nan if np.isnan(row).all() else np.nanmean(row) for row in values])
