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
    """The second at which the last picture ends, on the film's own clock, by the container's header; None if
    it does not say that of the pictures alone, or if it lists them one by one, so that none can be missing.
    `start` is the time of the first picture. Call it within `decoding`."""
    if kind == "avi":
        # FFmpeg makes up the duration from what is left of a file that was cut; the count is the header's.
        return stream.frames * stream.time_base if stream.frames else None
    if kind == "mov":
        return None if stream.frames or not stream.duration else start + stream.duration * stream.time_base
    written = _DURATION.fullmatch(stream.metadata.get("DURATION", ""))
    if written is not None:
        return 3600 * int(written[1]) + 60 * int(written[2]) + Fraction(written[3])
    if len(container.streams) == 1:
        return duration_of(container)
    return None


def duration_of(container: Any) -> Fraction | None:
    """What the container says of its longest track, in seconds. Call it within `decoding`."""
    return Fraction(container.duration, 10**6) if container.duration else None


def ends_of(packets: Iterable[Any], stream: Any, period: Fraction) -> tuple[Fraction | None, Fraction]:
    """The seconds at which the last picture and the last packet of any track end, by the times of packets,
    which need not be decoded. A picture stands for at least one `period`. None without a picture."""
    last: Fraction | None = None
    stands, everything, in_order = period, Fraction(0), True
    for packet in packets:
        ticks = packet.dts if packet.pts is None else packet.pts
        if ticks is None or packet.time_base is None or packet.is_discard:
            continue
        time, duration = ticks * packet.time_base, (packet.duration or 0) * packet.time_base
        everything = max(everything, time + duration)
        if packet.stream_index == stream.index:
            # Where pictures are stored out of order, the durations are those from one packet to the next.
            in_order &= packet.dts is None or packet.dts == ticks
            if last is None or time >= last:
                last, stands = time, duration
    if last is None:
        return None, everything
    return last + (max(stands, period) if in_order else period), everything
