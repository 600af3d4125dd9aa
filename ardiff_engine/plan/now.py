# SPDX-License-Identifier: Apache-2.0
"""Where the frames of a stream stand at a tick, as sets of frames."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Frames = tuple[range, ...]
"""A set of frames: ranges in ascending order that neither touch nor overlap."""


def frames_of(numbers: Iterable[int]) -> Frames:
    """The set of these frames."""
    found: list[range] = []
    for frame in sorted(set(numbers)):
        if found and found[-1].stop == frame:
            found[-1] = range(found[-1].start, frame + 1)
        else:
            found.append(range(frame, frame + 1))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Now:
    """Before a tick: `finished` frames, given ones included; `unfinished` ones, which this tick or an earlier
    one has started; `started`: both."""

    started: Frames
    unfinished: Frames
    finished: Frames

    @property
    def newest(self) -> int:
        """The highest frame that has started; -1 if none has."""
        return self.started[-1][-1] if self.started else -1

    @property
    def oldest_unfinished(self) -> int:
        """The lowest frame that has started and is not finished; `newest` + 1 if there is none."""
        return self.unfinished[0].start if self.unfinished else self.newest + 1
