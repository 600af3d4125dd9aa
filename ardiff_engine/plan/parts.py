# SPDX-License-Identifier: Apache-2.0
"""A video made part by part: each follows a rule of its own kind, with all frames before it given."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ardiff_engine.errors import PlanError
from ardiff_engine.plan.explicit import ExplicitPlan, Maker
from ardiff_engine.plan.tick import Tick


@dataclass(frozen=True, slots=True)
class PartsRule:
    """rule: of every part. ends: where the parts end, rising; what follows the last is one more part."""

    rule: Maker
    ends: tuple[int, ...]

    def plan(self, num_frames: int | None, steps: tuple[int, ...], prefix: int = 0) -> ExplicitPlan:
        if num_frames is None or len(steps) != 1:
            raise PlanError("parts need a number of frames and one list of steps")
        ticks: list[Tick] = []
        blocks = [range(frame, frame + 1) for frame in range(prefix)]
        begin, ordered = prefix, True
        for end in (*[end for end in self.ends if prefix < end < num_frames], num_frames):
            part = self.rule.plan(end, steps, begin)
            ordered = ordered and part.ordered
            if part.num_ticks is None:
                raise PlanError(f"{part.rule} has no end: a part needs one")
            ticks += [replace(part.tick(n), index=len(ticks) + n) for n in range(part.num_ticks)]
            while begin < end:
                blocks.append(part.block(begin))
                begin = blocks[-1].stop
        return ExplicitPlan(num_frames, steps[0], tuple(ticks), prefix, ordered, tuple(blocks), self)

    def __str__(self) -> str:
        return f"{len(self.ends)} parts"
