# SPDX-License-Identifier: Apache-2.0
"""Sets of frames, one after the other, in any order (MMPL: first key frames, then what lies between them)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from ardiff_engine.errors import PlanError
from ardiff_engine.plan.explicit import ExplicitPlan
from ardiff_engine.plan.now import frames_of
from ardiff_engine.plan.tick import Tick


@dataclass(frozen=True, slots=True)
class SetsRule:
    """groups: each frame of the video once. Frames of a group share a level; those that are neighbours form
    a block."""

    groups: tuple[tuple[int, ...], ...]

    def plan(self, num_frames: int | None, steps: tuple[int, ...], prefix: int = 0) -> ExplicitPlan:
        if num_frames is None or len(steps) != 1:
            raise PlanError("sets of frames need a number of frames and one list of steps")
        if sorted(chain.from_iterable(self.groups)) != list(range(num_frames)):
            raise PlanError(f"sets {self.groups} must hold each of {num_frames} frames once")
        groups = [tuple(sorted(f for f in group if f >= prefix)) for group in self.groups]
        order = [(group, level) for group in groups if group for level in range(steps[0])]
        ticks = [Tick(n, group, (level,) * len(group)) for n, (group, level) in enumerate(order)]
        given = [range(f, f + 1) for f in range(prefix)]
        blocks = (*given, *sorted(chain(*map(frames_of, groups)), key=lambda block: block.start))
        return ExplicitPlan(
            num_frames, steps[0], tuple(ticks), prefix, ordered=False, blocks=blocks, maker=self
        )

    def __str__(self) -> str:
        return f"{len(self.groups)} sets"
