# SPDX-License-Identifier: Apache-2.0
"""What is measured of videos of moving digits, one value per clip.

No measure is used alone: a frozen clip is constant and readable, a shuffled one as well, and a model that
knows one clip makes it perfectly. `MEASURES` says which of the spoiled clips each one finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ardiff_engine.evaluation.digit_classifier import DigitClassifier
from ardiff_engine.evaluation.motion import (
    bounces_agreed,
    centroids,
    position_errors,
    speeds,
    unsteadiness,
    velocity_errors,
)

Values = Mapping[str, NDArray[np.float64]]
"""One value per clip, by measure; NaN where a clip has none."""

CONFIDENT = 0.8
FIRST = 8
"""Predicted frames that the position error is a mean of."""


@dataclass(frozen=True, slots=True)
class Measure:
    """text: for the table's legend. digits: after the point. finds: spoiled clips whose interval lies apart
    from that of the clips they were made of."""

    text: str
    digits: int
    finds: tuple[str, ...]


VIDEO_MEASURES = {
    "constant": Measure("share of frames read with p >= 0.8 as the clip's commonest digit", 3, ("noised",)),
    "readable": Measure("share of frames read with p >= 0.8", 3, ("noised",)),
    "as asked": Measure("1 where the commonest digit is the class that was asked for", 2, ("repeated",)),
    "speed": Measure("mean step, pixels per frame; real digits have 1 to 2.5", 2, ("frozen", "shuffled")),
    "unsteadiness": Measure("median change of velocity, pixels per frame²", 3, ("shuffled", "noised")),
    "variety": Measure("distance to the most similar clip of the same digit, grey levels", 1, ("repeated",)),
    "fading": Measure("readable in the first quarter of the frames, less that in the last", 3, ("faded",)),
}
CONTINUATION_MEASURES = {
    "position error": Measure(
        f"pixels from where the digit is, first {FIRST} predicted frames",
        2,
        ("frozen", "shuffled", "repeated"),
    ),
    "last position error": Measure("the same in the last predicted frame", 2, ("frozen", "repeated")),
    "velocity error": Measure("of the step, pixels per frame", 2, ("frozen", "shuffled", "repeated")),
    "bounces": Measure("2 x bounces that agree / all bounces of both", 2, ("frozen", "shuffled", "repeated")),
}
MEASURES = VIDEO_MEASURES | CONTINUATION_MEASURES


def measure_videos(
    classifier: DigitClassifier, videos: NDArray[np.uint8], classes: NDArray[np.int64] | None
) -> Values:
    """videos uint8 [N, T, H, W, 3]; classes [N], or None where none was asked for, then without "as
    asked"."""
    probabilities = classifier.probabilities(videos)
    digits, sure = probabilities.argmax(axis=-1), probabilities.max(axis=-1) >= CONFIDENT
    commonest = np.array([np.bincount(row, minlength=10).argmax() for row in digits])
    quarter = max(1, videos.shape[1] // 4)
    values = {
        "constant": (sure & (digits == commonest[:, None])).mean(axis=1),
        "readable": sure.mean(axis=1),
        "speed": speeds(videos),
        "unsteadiness": unsteadiness(videos),
        "variety": variety(videos, commonest),
        "fading": sure[:, :quarter].mean(axis=1) - sure[:, -quarter:].mean(axis=1),
    }
    if classes is not None:
        values["as asked"] = (commonest == classes).astype(np.float64)
    return {name: values[name] for name in VIDEO_MEASURES if name in values}


def measure_continuations(
    last_given: NDArray[np.uint8], continued: NDArray[np.uint8], truth: NDArray[np.uint8]
) -> Values:
    """last_given uint8 [N, H, W, 3], the frame that the new ones follow; continued and truth [N, P, H, W,
    3]."""
    error = position_errors(continued, truth)
    ours, theirs = (np.concatenate([last_given[:, None], frames], axis=1) for frames in (continued, truth))
    return {
        "position error": error[:, :FIRST].mean(axis=1),
        "last position error": error[:, -1],
        "velocity error": velocity_errors(ours, theirs),
        "bounces": bounces_agreed(ours, theirs),
    }


def stretches(continued: NDArray[np.uint8], truth: NDArray[np.uint8]) -> Values:
    """Mean position error of every `FIRST` predicted frames, as "frames 9 to 16": how it drifts."""
    error = position_errors(continued, truth)
    starts = range(0, error.shape[1], FIRST)
    return {
        f"frames {start + 1} to {start + FIRST}": error[:, start : start + FIRST].mean(axis=1)
        for start in starts
    }


def variety(videos: NDArray[np.uint8], digits: NDArray[np.int64]) -> NDArray[np.float64]:
    """Root mean square distance of a clip's digit, centred and averaged over the frames, to the nearest one
    of another clip with the same digit: [N, T, H, W, 3], [N] -> [N], grey levels; NaN for a digit's only
    clip."""
    looks = np.stack([_centred(video).ravel() for video in videos])
    distance = np.sqrt(((looks[:, None] - looks[None]) ** 2).mean(axis=-1))
    other = (digits[:, None] == digits[None]) & ~np.eye(len(digits), dtype=bool)
    nearest = np.where(other, distance, np.inf).min(axis=1)
    return np.where(np.isinf(nearest), np.nan, nearest)


def _centred(video: NDArray[np.uint8]) -> NDArray[np.float64]:
    """uint8 [T, H, W, 3] -> float64 [H, W]: the mean of all frames, each rolled so that its digit is in the
    middle; frames without one as they are."""
    height, width = video.shape[1:3]
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    shifts = np.rint(np.nan_to_num(middle - centroids(video))).astype(int)
    grey = video[..., 0].astype(np.float64)
    return np.mean(
        [np.roll(frame, (y, x), axis=(0, 1)) for frame, (x, y) in zip(grey, shifts, strict=True)], axis=0
    )
