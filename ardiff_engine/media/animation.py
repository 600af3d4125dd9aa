# SPDX-License-Identifier: Apache-2.0
"""Animations (webp, gif, png) and still pictures as videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from ardiff_engine.media.animation_times import DamagedAnimation, picture_times
from ardiff_engine.media.limits import check_length
from ardiff_engine.media.picture import open_picture, pixels_of
from ardiff_engine.media.pixels import Pixels
from ardiff_engine.media.rate import at_rate, slot
from ardiff_engine.media.source import decoding, opened, size_of, undecodable
from ardiff_engine.media.timing import noted
from ardiff_engine.media.video import Video


@dataclass(frozen=True)
class Animation(Video):
    """shown: (index of the picture in the file, the second at which it appears). rate: frames per second."""

    shown: tuple[tuple[int, Fraction], ...]
    rate: Fraction

    def play(self, first: int = 0) -> Iterator[Pixels]:
        with opened(self.path) as file, open_picture(self.path, file) as image:
            yield from at_rate(self._pictures(image, first), self.rate, first, self.frames)

    def _pictures(self, image: Image.Image, first: int) -> Iterator[tuple[Fraction, Callable[[], Pixels]]]:
        ends = [slot(start, self.rate) for _, start in self.shown[1:]] + [self.frames]
        for (index, start), end in zip(self.shown, ends, strict=True):
            if end > first:
                yield start, partial(self._pixels, image, index)

    def _pixels(self, image: Image.Image, index: int) -> Pixels:
        with decoding(self.path):
            image.seek(index)
            pixels = pixels_of(image)
        if pixels.shape[:2] != (self.height, self.width):
            # Pillow lets a GIF's picture grow beyond what the file announced.
            raise undecodable(self.path, f"picture {index} has another size: {list(pixels.shape[:2])}")
        return pixels


def open_animation(path: Path, file: BinaryIO, fps: Fraction | None) -> Animation:
    """What is known of an animation or a still picture; `fps` replaces its own rate.

    Raises:
        MediaError: damaged, or pictures or times beyond what a file of its size may ask for.
    """
    size = size_of(file)
    with open_picture(path, file) as image:
        try:
            times = picture_times(str(image.format), file)
        except (DamagedAnimation, OSError) as error:
            raise undecodable(path, str(error)) from error
        note = noted(_note(image))
        durations, own = _durations([seconds for _, seconds in times], note)
        rate = fps or (1 / own if own else Fraction(1))
        frames = max(slot(sum(durations, Fraction(0)), rate), 1)
        check_length(path, frames, size)
        with decoding(path):
            image.seek(times[0][0])
            height, width = pixels_of(image).shape[:2]
    starts = accumulate(durations, initial=Fraction(0))
    shown = tuple((index, start) for (index, _), start in zip(times, starts, strict=False))
    said = None if own is None else float(rate)
    return Animation(path, frames, height, width, said, size, shown, rate)


def _durations(
    seconds: list[Fraction], note: tuple[int, Fraction] | None
) -> tuple[list[Fraction], Fraction | None]:
    """The time of each picture, and of one frame: as the note says, or else that of the shortest picture."""
    if note and len(seconds) == 1:
        return [note[0] * note[1]], note[1]
    period = min((duration for duration in seconds if duration > 0), default=None)
    if note and slot(sum(seconds, Fraction(0)), 1 / note[1]) == note[0]:
        period = note[1]
    return [duration or period or Fraction(1) for duration in seconds], period


def _note(image: Image.Image) -> bytes:
    note = image.info.get("comment") or image.info.get("xmp") or b""
    return note if isinstance(note, bytes) else str(note).encode(errors="replace")
