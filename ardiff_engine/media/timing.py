# SPDX-License-Identifier: Apache-2.0
"""How often each picture of an animation is shown.

Writers of webp and gif merge equal neighbours into one picture that stands longer, and a still video into a
single one. So our files carry a note with the number of frames and the time of one; in other files the
shortest picture is one frame.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NOTE = re.compile(rb"ardiff frames=(\d{1,6}) period=(\d{1,6})ms")
# A damaged header can claim any time for one picture; the list of copies must stay bounded.
MAX_REPEATS = 10_000


def timing_note(frames: int, milliseconds: int) -> bytes:
    """The note for `frames` frames of `milliseconds` each."""
    return b"ardiff frames=%d period=%dms" % (frames, milliseconds)


def promised_frames(note: bytes) -> int | None:
    """The number of frames that the note names; None without a note."""
    found = NOTE.search(note)
    return int(found[1]) if found else None


def repeats(durations: Sequence[float], note: bytes) -> list[int]:
    """How many frames each picture stands for, from its time in milliseconds and the file's note."""
    found = NOTE.search(note)
    if found and len(durations) == 1:
        return [min(max(int(found[1]), 1), MAX_REPEATS)]
    shortest = min((duration for duration in durations if duration > 0), default=0.0)
    period = float(found[2]) if found else shortest
    if period <= 0:
        return [1] * len(durations)
    return [min(max(round(duration / period), 1), MAX_REPEATS) for duration in durations]
