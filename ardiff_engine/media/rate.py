# SPDX-License-Identifier: Apache-2.0
"""Frames at a constant rate from pictures that have times of their own.

At R frames per second, a picture that appears at t seconds is shown from frame round(R t) on, until the next
one appears. A gap in time becomes repeated frames; of pictures closer than 1 / R, the last is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import repeat

from ardiff_engine.media.frames import Pixels


def slot(seconds: Fraction, rate: Fraction) -> int:
    """The frame at `rate` frames per second from which on a picture of that time is shown."""
    return math.floor(seconds * rate + Fraction(1, 2))


def at_rate(
    pictures: Iterable[tuple[Fraction, Callable[[], Pixels]]], rate: Fraction, first: int, end: int
) -> Iterator[Pixels]:
    """Frames first, ..., end - 1 of pictures (time in seconds, how to make the pixels), in order of time.

    Pixels are made of shown pictures only. The first picture must not appear after frame `first`; the last
    one stays until `end`. Repeated frames are the same array.
    """
    shown: Callable[[], Pixels] | None = None
    position = first
    for seconds, picture in pictures:
        count = min(slot(seconds, rate), end) - position
        if shown is not None and count > 0:
            yield from repeat(shown(), count)
            position += count
        if position == end:
            return
        shown = picture
    if shown is not None:
        yield from repeat(shown(), end - position)
