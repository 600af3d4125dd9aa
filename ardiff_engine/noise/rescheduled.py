# SPDX-License-Identifier: Apache-2.0
"""FreeNoise (arXiv 2310.15169): the noise of a window comes again in later ones, shuffled by strides."""

from __future__ import annotations

from random import Random
from threading import Lock

import torch

from ardiff_engine.errors import ConfigError
from ardiff_engine.noise.source import Draws, Iid


class Rescheduled(Iid):
    """Frames `window` and later start from the noise of frames before them: frames i .. i + stride - 1 take
    that of frames i - window .. i - window + stride - 1 in another order, i = window, window + stride, …

    seed: of Python's `random`, whose `shuffle` orders one stride after the other.
    """

    def __init__(self, window: int, stride: int, seed: int = 0) -> None:
        for name, value in (("window", window), ("stride", stride)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"noise.Rescheduled {name}={value!r}: give a number of frames, 1 or more")
        if stride > window:
            raise ConfigError(f"noise.Rescheduled: a stride of {stride} is longer than its window, {window}")
        self._window, self._stride = window, stride
        self._random, self._lock = Random(seed), Lock()
        self._sources = list(range(window))

    def source(self, frame: int) -> int:
        """The frame below `window` whose counted noise this frame starts from."""
        with self._lock:
            while len(self._sources) <= frame:
                begin = len(self._sources) - self._window
                again = self._sources[begin : begin + self._stride]
                self._random.shuffle(again)
                self._sources += again
            return self._sources[frame]

    def initial(self, frame: int, own: Draws) -> torch.Tensor:
        return own(self.source(frame))


def fusion_weights(window: int) -> list[int]:
    """Weights of a window's frames where overlapping windows are averaged: 1, 2, … and down again."""
    return [min(frame, window - 1 - frame) + 1 for frame in range(window)]
