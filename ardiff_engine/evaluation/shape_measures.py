# SPDX-License-Identifier: Apache-2.0
"""What is measured of continued clips of one moving shape, by the exact detector: one value per clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ardiff_engine.data.moving_shapes import Scene
from ardiff_engine.evaluation.digit_measures import FIRST, Measure, Values
from ardiff_engine.evaluation.motion import steps_apart, turns_agreed
from ardiff_engine.evaluation.shape_detector import tracks

UNSEEN = 32.0
"""Pixels that a frame counts for in which the shape's color is not seen: half of the picture."""
SHAPE_MEASURES = {
    "position error": Measure(
        f"pixels from where the shape is, first {FIRST} predicted frames; {UNSEEN:.0f} where it is not seen",
        2,
        ("frozen", "shuffled", "noised", "repeated", "faded"),
    ),
    "last position error": Measure(
        "the same in the last predicted frame", 2, ("frozen", "repeated", "faded")
    ),
    "velocity error": Measure("of the step, pixels per frame", 2, ("frozen", "shuffled")),
    "bounces": Measure("2 x bounces that agree / all bounces of both", 2, ("frozen", "shuffled")),
    "seen": Measure("share of frames in which the color is seen", 2, ("repeated", "faded")),
    "form": Measure("share of frames in which the color has its form", 2, ("noised", "repeated", "faded")),
}


def centres_and_forms(
    videos: NDArray[np.uint8], scenes: Sequence[Scene]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """uint8 [N, T, H, W, 3] -> centres [N, T, 2] of the first shape's color, (x, y) of the mean pixel, NaN
    where it is not seen; and whether it has its form, [N, T].

    The mean pixel of a triangle lies a third of its radius below the centre that `ShapeClip` names: true
    centres are taken from true frames.
    """
    found = [tracks(video) for video in videos]
    pairs = list(zip(found, scenes, strict=True))
    centres = np.stack([own.centres[:, scene.colors[0]] for own, scene in pairs])
    forms = np.stack([own.shapes[:, scene.colors[0]] == scene.shapes[0] for own, scene in pairs])
    return centres, forms


def measure_shapes(made: NDArray[np.uint8], scenes: Sequence[Scene], truth: NDArray[np.float64]) -> Values:
    """made: frames after the given ones. truth: centres [N, 1 + T, 2], the last given frame's first."""
    centres, forms = centres_and_forms(made, scenes)
    error = np.linalg.norm(centres - truth[:, 1:], axis=-1)
    seen = ~np.isnan(error)
    error[~seen] = UNSEEN
    ours = np.concatenate([truth[:, :1], centres], axis=1)
    return {
        "position error": error[:, :FIRST].mean(axis=1),
        "last position error": error[:, -1],
        "velocity error": steps_apart(ours, truth),
        "bounces": turns_agreed(ours, truth),
        "seen": seen.mean(axis=1),
        "form": forms.mean(axis=1),
    }
