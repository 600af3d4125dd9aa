# SPDX-License-Identifier: Apache-2.0
"""What one stream feeds in one pass: which cells, at which level, and what they see."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import compress
from typing import Any

from ardiff_engine.memory.view import View
from ardiff_engine.plan import Frames, Plan

PER_CELL = ("frames", "updates", "levels", "steps", "tracks", "views", "copies", "positions", "layers")


@dataclass(frozen=True, slots=True, eq=False)
class Roster:
    """The cells of a pass of one stream and what they see, from the first pass on that feeds them.

    While cells only go from level to level it stays the same object, so that what depends on it alone
    (pages, views, positions) is looked up and not computed again.

    The first pass may feed more than those that follow: the context, and frames for their K/V alone.

    frames: of each cell; a frame that is both moved and stored in a pass has two. updates: which of them the
        solver moves. levels: row of its track's timesteps in the first pass, that after the last for a frame
        that waits to start. steps: of its track; tracks: which one that is.
    views: what each cell sees, its own frame included. copies: which copy of its K/V it writes. positions:
        where it stands. kept: frames whose pages and latents stay.
    feeds_context: whether the context is part of the pass.
    once: whether the context and frames that are not moved are part of the first pass alone.
    layers: where layers see differently, what each cell sees in each of them: parts of `views`.
    """

    frames: tuple[int, ...]
    updates: tuple[bool, ...]
    levels: tuple[int, ...]
    steps: tuple[int, ...]
    tracks: tuple[int, ...]
    views: tuple[View, ...]
    copies: tuple[int, ...]
    positions: tuple[int, ...]
    kept: Frames
    feeds_context: bool
    once: bool = False
    layers: tuple[tuple[View, ...], ...] = ()
    updated: tuple[int, ...] = field(init=False)
    """The frames that the solver moves."""
    passes_left: int = field(init=False)
    """Passes with this roster after which one of them is finished."""
    _rest: Roster | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "updated", tuple(compress(self.frames, self.updates)))
        left = [steps - level for steps, level in zip(self.steps, self.levels, strict=True)]
        object.__setattr__(self, "passes_left", min(compress(left, self.updates), default=1))

    @property
    def rest(self) -> Roster:
        """What the passes after the first one feed. The same stays, and waits for the next roster to go."""
        if not self.once:
            return self
        if self._rest is None:
            rest = Roster(**self.moving(), kept=self.kept, feeds_context=False)
            object.__setattr__(self, "_rest", rest)
        return self._rest or self

    def moving(self) -> dict[str, Any]:
        """What is said per cell, of those that the solver moves alone."""
        return {name: tuple(compress(getattr(self, name), self.updates)) for name in PER_CELL}


@dataclass(frozen=True, slots=True, eq=False)
class Feed:
    """One pass of one stream: `passed` passes after the first one with a roster. Frames that the solver moves
    have risen by one level in each of them."""

    first: Roster
    passed: int = 0

    @property
    def roster(self) -> Roster:
        """What this pass feeds."""
        return self.first.rest if self.passed else self.first

    def later(self, passes: int) -> Feed:
        """So many passes after this one, or before it, while only levels change."""
        return Feed(self.first, self.passed + passes)

    @property
    def levels(self) -> tuple[int, ...]:
        """Row of its track's timesteps for each cell of the roster."""
        roster, passed = self.roster, self.passed
        moved = zip(roster.levels, roster.updates, strict=True)
        return tuple(level + passed if updates else level for level, updates in moved)

    @property
    def updated_levels(self) -> tuple[int, ...]:
        """Of the frames that the solver moves, before it does."""
        roster, passed = self.roster, self.passed
        return tuple([level + passed for level in compress(roster.levels, roster.updates)])


def given_chunks(plan: Plan, most: int, first: int = 0) -> list[range]:
    """Given frames from `first` on, to store before the first tick: whole blocks, of at most that many frames
    or one alone."""
    chunks: list[range] = []
    frame = first
    while most and frame < plan.prefix:
        block = plan.block(frame)
        if block.stop > plan.prefix:  # its given frames are fed beside the others
            break
        if chunks and block.stop - chunks[-1].start <= most:
            chunks[-1] = range(chunks[-1].start, block.stop)
        else:
            chunks.append(block)
        frame = block.stop
    return chunks
