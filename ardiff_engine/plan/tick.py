# SPDX-License-Identifier: Apache-2.0
"""A tick: the frames of one stream that one pass moves."""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.errors import PlanError


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

    def __len__(self) -> int:
        return len(self.frames)
