# SPDX-License-Identifier: Apache-2.0
"""A note in our animations with the number of frames and the time of one.

Writers of webp and gif merge equal neighbours into one picture that stands longer, and a still video into a
single one without a time. In files without a note, the shortest picture is one frame.
"""

from __future__ import annotations

import re
from fractions import Fraction

NOTE = re.compile(rb"ardiff frames=(\d{1,6}) period=(\d{1,6})ms")


def timing_note(frames: int, milliseconds: int) -> bytes:
    """The note for `frames` frames of `milliseconds` each."""
    return b"ardiff frames=%d period=%dms" % (frames, milliseconds)


def noted(note: bytes) -> tuple[int, Fraction] | None:
    """(number of frames, seconds of one) as the note says; None without a note that makes sense."""
    found = NOTE.search(note)
    if found is None or not int(found[1]) or not int(found[2]):
        return None
    return int(found[1]), Fraction(int(found[2]), 1000)
