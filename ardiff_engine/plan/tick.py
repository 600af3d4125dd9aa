# SPDX-License-Identifier: Apache-2.0
"""A tick: the frames of one stream that one pass moves."""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.errors import PlanError


@dataclass(frozen=True, slots=True)
class Cycle:
    """From some tick on, tick m + `ticks` does what tick m does, `frames` frames further: it moves those at
    the same levels of tracks with as many steps, and finished and started frames end so much later. That
    holds where m + `ticks` is before tick `end`; None: for ever."""

    ticks: int
    frames: int
    end: int | None


@dataclass(frozen=True, slots=True)
class Tick:
    """One pass of one stream. Whose keys and values are stored besides is the memory's business.

    index: number of the tick, from 0.
    frames: the frames that the solver moves, ascending. All others are left alone.
    levels: solver steps that each of them has finished before the tick.
    """

    index: int
    frames: tuple[int, ...]
    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.frames) != len(self.levels):
            raise PlanError(
                f"tick {self.index} has {len(self.frames)} frames and {len(self.levels)} levels; "
                "give one level per frame"
            )

    @property
    def starting(self) -> tuple[int, ...]:
        """The frames that it moves for the first time."""
        return tuple([frame for frame, level in zip(self.frames, self.levels, strict=True) if level == 0])

    def __len__(self) -> int:
        return len(self.frames)
