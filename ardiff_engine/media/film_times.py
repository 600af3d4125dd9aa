# SPDX-License-Identifier: Apache-2.0
"""The rate of a film, and where its pictures end by what its container says.

A film that was cut off ends before that, and most decoders then show it as if it were a shorter one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from statistics import median_low
from typing import Any

from ardiff_engine.media.rate import MAX_RATE

SAME_RATE = Fraction(1, 10)
_DURATION = re.compile(r"(\d{1,6}):(\d\d):(\d\d(?:\.\d{1,9})?)")


def seconds_of(ticks: int | None, stream: Any, otherwise: Fraction) -> Fraction:
    """Ticks of a track's clock in seconds."""
    return otherwise if ticks is None else ticks * stream.time_base


def own_rate(times: Sequence[Fraction], stated: Iterable[Fraction | None]) -> Fraction:
    """Frames per second of a film whose first frames appear at `times`.

    That is the first of the stated rates whose period is, within a tenth, the usual distance of two frames: a
    mean rate is wrong where there are gaps, the one that every time fits may be many times too high, and a
    distance is rounded to the clock's ticks. 1 for a single frame.
    """
    distances = [later - earlier for earlier, later in pairwise(sorted(set(times)))]
    if not distances:
        return Fraction(1)
    usual = max(median_low(distances), 1 / MAX_RATE)
    for rate in stated:
        if rate and abs(rate * usual - 1) <= SAME_RATE:
            return rate
    return (1 / usual).limit_denominator(1001)


def promised_end(container: Any, stream: Any, kind: str, start: Fraction) -> Fraction | None:
    """The second at which the last picture ends, on the film's own clock; None if the container does not say
    that of the pictures alone. `start` is the time of the first picture. Call it within `decoding`."""
    if kind == "avi":
        # FFmpeg makes up the duration from what is left of a file that was cut; the count is the header's.
        return stream.frames * stream.time_base if stream.frames else None
    written = _DURATION.fullmatch(stream.metadata.get("DURATION", ""))
    if written is not None:
        return 3600 * int(written[1]) + 60 * int(written[2]) + Fraction(written[3])
    if stream.duration:
        return start + stream.duration * stream.time_base
    if container.duration and len(container.streams) == 1:
        return Fraction(container.duration, 10**6)
    return None


def surveyed_end(container: Any, stream: Any, kind: str, packets: Iterable[Any]) -> tuple[Fraction, bool]:
    """The same from the times of all packets, which are not decoded; and whether they go on for as long as
    the container says."""
    pictures = everything = Fraction(0)
    for packet in packets:
        time = packet.dts if packet.pts is None else packet.pts
        if time is None or packet.time_base is None:
            continue
        end = (time + (packet.duration or 0)) * packet.time_base
        everything = max(everything, end)
        if packet.stream_index == stream.index:
            pictures = max(pictures, end)
    said = Fraction(container.duration or 0, 10**6) if kind == "matroska" else Fraction(0)
    return pictures, everything + Fraction(1, 10) >= said
