# SPDX-License-Identifier: Apache-2.0
"""What networks of `trained_digits` learn and continue: digits (`digit_world`) or shapes (`shape_world`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ardiff_engine.data.encoded_clips import LatentSource
from ardiff_engine.evaluation.digit_measures import Measure, Values

FRAMES = 16
"""Of a window that is learned."""
LONG = 32
"""Of a stored clip, whereof windows are drawn."""
GIVEN = 8
"""Frames that a continuation follows."""
TOGETHER = 64
"""Clips that are continued, encoded or decoded in one batch."""

Video = NDArray[np.uint8]


class HeldOut(Protocol):
    """Clips to continue. given: latents of their first frames, [clips, frames, 1, numbers]. measures: what
    `measured` says, and which spoiled clips each one is to find."""

    given: Tensor
    measures: Mapping[str, Measure]

    def measured(self, made: Video) -> Values:
        """made: frames after the given ones, [clips, frames, H, W, 3]."""
        ...

    def references(self) -> dict[str, Values]:
        """Of clips that no network made: the true frames, their reconstructions, and spoiled ones, as
        "frozen", the last given frame held."""
        ...


class World(Protocol):
    """name: in protocols and of files."""

    name: str

    @property
    def numbers(self) -> int:
        """Of a frame; they have a deviation of about 1/2."""
        ...

    def source(self, clips: int, seed: int, path: Path) -> LatentSource:
        """Windows of `FRAMES` frames from so many clips, encoded once and kept at `path`."""
        ...

    def pixels(self, latents: Tensor) -> Video:
        """[N, T, 1, numbers] -> uint8 [N, T, H, W, 3]."""
        ...

    def held_out(self, clips: int, frames: int) -> HeldOut: ...
