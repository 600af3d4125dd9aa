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

from ardiff_engine.errors import MediaError
from ardiff_engine.media.pixels import Pixels

MIN_RATE, MAX_RATE = Fraction(1, 100), Fraction(1000)


def rate_of(fps: object) -> Fraction:
    """Frames per second as a fraction. Raises MediaError unless it is a number that a video can have."""
    try:
        rate = Fraction(fps if isinstance(fps, Fraction) else float(fps))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        rate = Fraction(0)
    if isinstance(fps, str) or not MIN_RATE <= rate <= MAX_RATE:
        raise MediaError(
            f"fps out of range: got {fps!r}, expected a number from {float(MIN_RATE):g} to {MAX_RATE}. "
            "8 suits the bundled model."
        )
    return rate.limit_denominator(1001)


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
