# SPDX-License-Identifier: Apache-2.0
"""What one stream feeds in one pass: who, at which level, and what they see."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import compress


@dataclass(frozen=True, slots=True, eq=False)
class Roster:
    """Who is fed in a pass of one stream and what they see, from the first pass on that feeds them.

    While frames only go from level to level it stays the same object, so that what depends on it alone
    (pages, views, positions) is looked up and not computed again.

    frames: in ascending order; updates: which of them the solver moves. levels: row of the timestep table for
    each frame in the first pass, S + 1 for one that waits to start. newest: the youngest started frame.
    first_held: frames before it, sinks apart, are not needed any more. origin: the frame at position 0.
    floor: frames before it, sinks apart, are forgotten.
    sinks: leading frames that everyone sees. feeds_context: whether the context is part of the pass.
    """

    frames: tuple[int, ...]
    updates: tuple[bool, ...]
    levels: tuple[int, ...]
    newest: int
    first_held: int
    origin: int
    floor: int
    sinks: range
    feeds_context: bool
    updated: tuple[int, ...] = field(init=False)
    """The frames that the solver moves."""
    highest: int = field(init=False)
    """The highest level among those in the first pass; -1 if there are none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "updated", tuple(compress(self.frames, self.updates)))
        object.__setattr__(self, "highest", max(compress(self.levels, self.updates), default=-1))

    def visible(self, first: int, last: int) -> list[int]:
        """Frames that a view of first..last shows, sinks before it included, in order."""
        if not self.sinks:
            return list(range(max(first, self.floor), last + 1))
        before = range(self.sinks.start, min(self.sinks.stop, first))
        return [*before, *(f for f in range(first, last + 1) if f >= self.floor or f in self.sinks)]


@dataclass(frozen=True, slots=True, eq=False)
class Feed:
    """One pass of one stream: `passed` passes after the roster's first. Frames that the solver moves have
    risen by one level in each of them."""

    roster: Roster
    passed: int = 0

    @property
    def levels(self) -> tuple[int, ...]:
        """Row of the timestep table for each frame of the roster."""
        roster, passed = self.roster, self.passed
        moved = zip(roster.levels, roster.updates, strict=True)
        return tuple(level + passed if updates else level for level, updates in moved)

    @property
    def updated_levels(self) -> tuple[int, ...]:
        """Of the frames that the solver moves, before it does."""
        roster, passed = self.roster, self.passed
        return tuple([level + passed for level in compress(roster.levels, roster.updates)])
