# SPDX-License-Identifier: Apache-2.0
"""The pyramid of Diffusion Forcing (arXiv 2407.01392): block g starts ⌊g·u⌋ ticks after the first one.

u, the uncertainty scale, is real: 0 denoises all together, 1 is a lag of one step, 0.5 starts two
at a time, S or more starts each when the one before it is finished.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ardiff_engine.arguments import number
from ardiff_engine.errors import PlanError
from ardiff_engine.plan.cut import Cut
from ardiff_engine.plan.staircase import Staircase


@dataclass(frozen=True, slots=True)
class PyramidPlan(Staircase):
    num_frames: int
    num_steps: int
    uncertainty: float
    prefix: int = 0
    ordered: bool = True
    cut: Cut = Cut()

    def __post_init__(self) -> None:
        self._check()
        if self.num_frames is None:
            raise PlanError("a pyramid needs a number of frames; for an endless video use a lag")
        if not 0 <= number("uncertainty of a pyramid", self.uncertainty) < math.inf:
            raise PlanError(f"uncertainty {self.uncertainty} of a pyramid: use a number >= 0")

    @property
    def rule(self) -> str:
        return f"pyramid {self.uncertainty:g}" + ("" if self.cut == Cut() else f", {self.cut}")

    @property
    def _alike_from(self) -> int:
        return self.num_frames

    def _start(self, number: int) -> int:
        return math.floor(number * min(self.uncertainty, self.num_steps))


@dataclass(frozen=True, slots=True)
class PyramidRule:
    uncertainty: float
    cut: Cut = Cut()

    def plan(self, num_frames: int | None, steps: tuple[int, ...], prefix: int = 0) -> PyramidPlan:
        if num_frames is None or len(steps) != 1:
            raise PlanError("a pyramid needs a number of frames and one list of steps")
        return PyramidPlan(num_frames, steps[0], self.uncertainty, prefix, cut=self.cut)
