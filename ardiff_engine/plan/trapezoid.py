# SPDX-License-Identifier: Apache-2.0
"""Both ends of a clip first, the middle last (Diffusion Forcing, to plan between a start and a goal)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ardiff_engine.errors import PlanError
from ardiff_engine.plan.explicit import ExplicitPlan
from ardiff_engine.plan.tick import Tick


@dataclass(frozen=True, slots=True)
class TrapezoidRule:
    """A frame at distance d from the nearer end starts in tick ⌊d·uncertainty⌋. behind: by how much the last
    frame is further from its end than the first one from its own; 1 in the code of the paper."""

    uncertainty: float
    behind: int = 0

    def starts(self, frames: int) -> list[int]:
        near = [min(f, frames - 1 - f + self.behind) for f in range(frames)]
        return [math.floor(d * self.uncertainty) for d in near]

    def plan(self, num_frames: int | None, steps: tuple[int, ...], prefix: int = 0) -> ExplicitPlan:
        if num_frames is None or len(steps) != 1:
            raise PlanError("a trapezoid needs a number of frames and one list of steps")
        starts = self.starts(num_frames - prefix)
        ticks: list[Tick] = []
        for n in range(max(starts) + steps[0]):
            moving = [(prefix + f, n - start) for f, start in enumerate(starts) if 0 <= n - start < steps[0]]
            if moving:
                frames, levels = zip(*moving, strict=True)
                ticks.append(Tick(len(ticks), frames, levels))
        return ExplicitPlan(num_frames, steps[0], tuple(ticks), prefix, ordered=False, maker=self)

    def __str__(self) -> str:
        return f"trapezoid {self.uncertainty:g}"
