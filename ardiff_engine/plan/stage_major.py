# SPDX-License-Identifier: Apache-2.0
"""HiAR's order: every block takes step s before any block takes step s + 1.

Block b of B moves from level s in tick s·B + b. The pipelined form of it runs one diagonal per tick and is a
lag of one step over blocks. Blocks that run ahead take all of their steps first.
"""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.errors import PlanError
from ardiff_engine.plan.cut import Cut
from ardiff_engine.plan.explicit import ExplicitPlan
from ardiff_engine.plan.tick import Tick


@dataclass(frozen=True, slots=True)
class StageMajorRule:
    cut: Cut
    ahead: int = 0

    def plan(self, num_frames: int | None, steps: tuple[int, ...], prefix: int = 0) -> ExplicitPlan:
        if num_frames is None or len(steps) != 1:
            raise PlanError("stage by stage needs a number of frames and one list of steps")
        self.cut.check("given frames", prefix)
        self.cut.check("the video", num_frames)
        blocks = tuple(self.cut.block(number) for number in range(self.cut.number(num_frames)))
        given = self.cut.number(prefix)
        ahead, others = blocks[given : max(given, self.ahead)], blocks[max(given, self.ahead) :]
        order = [(level, block) for block in ahead for level in range(steps[0])]
        order += [(level, block) for level in range(steps[0]) for block in others]
        ticks = [Tick(n, tuple(block), (level,) * len(block)) for n, (level, block) in enumerate(order)]
        return ExplicitPlan(num_frames, steps[0], tuple(ticks), prefix, blocks=blocks, maker=self)

    def __str__(self) -> str:
        ahead = f", {self.ahead} ahead" if self.ahead else ""
        return f"stage by stage, {self.cut}{ahead}"
