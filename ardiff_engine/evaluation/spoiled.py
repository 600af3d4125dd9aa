# SPDX-License-Identifier: Apache-2.0
"""Real clips with one thing spoiled: what a measure says of them is what it is worth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Video = NDArray[np.uint8]
NOISE = 96.0
"""Standard deviation in grey levels."""
SEED = 0


def frozen(videos: Video) -> Video:
    """The first frame held: [N, T, H, W, 3] -> the same."""
    return np.repeat(videos[:, :1], videos.shape[1], axis=1)


def shuffled(videos: Video) -> Video:
    """The frames of each clip in random order."""
    order = np.random.default_rng(SEED).permuted(
        np.broadcast_to(np.arange(videos.shape[1]), videos.shape[:2]), axis=1
    )
    return np.take_along_axis(videos, order[:, :, None, None, None], axis=1)


def noised(videos: Video) -> Video:
    """Gaussian noise on every pixel."""
    noise = np.random.default_rng(SEED).normal(0, NOISE, videos.shape)
    return np.rint(np.clip(videos + noise, 0, 255)).astype(np.uint8)


def repeated(videos: Video) -> Video:
    """The first clip in place of all: a model that has collapsed."""
    return np.repeat(videos[:1], len(videos), axis=0)


def faded(videos: Video) -> Video:
    """Darker from frame to frame, black at the end."""
    light = np.linspace(1, 0, videos.shape[1])[:, None, None, None]
    return np.rint(videos * light).astype(np.uint8)


SPOILED: dict[str, Callable[[Video], Video]] = {
    "frozen": frozen,
    "shuffled": shuffled,
    "noised": noised,
    "repeated": repeated,
    "faded": faded,
}
