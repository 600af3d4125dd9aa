# SPDX-License-Identifier: Apache-2.0
"""A tick: the cells of one stream that one forward pass feeds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ardiff_engine.errors import PlanError, explain


class Kind(Enum):
    """What a cell is fed for."""

    UPDATE = "update"
    """The solver moves the frame from its level to the next."""

    COMMIT = "commit"
    """The frame is finished; only its keys and values are wanted."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One forward pass of one stream.

    Attributes:
        index: number of the tick, from 0.
        frames: the frames that are fed, ascending. All others are left alone.
        levels: solver steps that each of them has finished before the tick (S for a commit).
        kinds: what each of them is fed for.
    """

    index: int
    frames: tuple[int, ...]
    levels: tuple[int, ...]
    kinds: tuple[Kind, ...]

    def __post_init__(self) -> None:
        if not len(self.frames) == len(self.levels) == len(self.kinds):
            raise PlanError(
                explain(
                    f"tick {self.index} is ragged",
                    got=f"{len(self.frames)} frames, {len(self.levels)} levels, {len(self.kinds)} kinds",
                    expected="as many levels and kinds as frames",
                    fix="Give one level and one kind per frame.",
                )
            )

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def updates(self) -> tuple[int, ...]:
        """The frames that the solver advances."""
        return self._of(Kind.UPDATE)

    @property
    def commits(self) -> tuple[int, ...]:
        """The finished frames whose keys and values are stored."""
        return self._of(Kind.COMMIT)

    def _of(self, kind: Kind) -> tuple[int, ...]:
        return tuple(frame for frame, own in zip(self.frames, self.kinds, strict=True) if own is kind)
