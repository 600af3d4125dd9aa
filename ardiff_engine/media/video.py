# SPDX-License-Identifier: Apache-2.0
"""A video on the disk: what is known of it without decoding it, and its frames, from any of them on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ardiff_engine.errors import MediaError
from ardiff_engine.media.limits import check_whole
from ardiff_engine.media.pixels import Pixels
from ardiff_engine.media.source import undecodable


@dataclass(frozen=True)
class Clip:
    """Frames in memory, and how fast they are to be shown.

    frames: uint8 [T, H, W, 3]. fps: frames per second; None where the source does not say (a folder of
        pictures, a still picture).
    """

    frames: Pixels
    fps: float | None


@dataclass(frozen=True)
class Video(ABC):
    """What is known of a video before it is decoded. It holds no open file and no pixels.

    frames: how many there are at `fps`. height, width: of a frame, upright and in square pixels. fps: frames
        per second; None where the source does not say. file_bytes: the size of what lies on the disk.
    """

    path: Path
    frames: int
    height: int
    width: int
    fps: float | None
    file_bytes: int

    @abstractmethod
    def play(self, first: int = 0) -> Iterator[Pixels]:
        """Frames from index `first` on, one after another, uint8 [H, W, 3].

        Only what is needed is decoded, and one frame is held at a time. Repeated frames are the same array.

        Raises:
            MediaError: damaged, or shorter than the file says.
        """

    def read(
        self, first: int = 0, count: int | None = None, *, each: Callable[[Pixels], Pixels] | None = None
    ) -> Pixels:
        """Frames first, ..., first + count - 1 as one array uint8 [T, H, W, 3], or all from `first` on. Fewer
        if the video ends before.

        each: what is done with every frame while it is decoded, as making it smaller; all results have one
            shape.

        Raises:
            MediaError: damaged, shorter than the file says, `first` behind the end, or (without `count`) more
                than the file may ask for.
        """
        rest = self.frames - first
        wanted = rest if count is None else min(count, rest)
        if first < 0 or wanted < 1:
            raise MediaError(
                f"no such window in {self.path}: first={first}, count={count} of {self.frames} frames"
            )
        array: Pixels | None = None
        before: Pixels | None = None
        index = 0
        for index, frame in enumerate(islice(self.play(first), wanted), start=1):
            if frame is not before:
                before, pixels = frame, frame if each is None else each(frame)
            if array is None:
                if count is None:
                    check_whole(self.path, wanted * pixels.nbytes, self.file_bytes)
                array = np.empty((wanted, *pixels.shape), np.uint8)
            array[index - 1] = pixels
        if array is None or index < wanted:
            raise undecodable(self.path, f"it ends after {first + index} of {self.frames} frames")
        return array
