# SPDX-License-Identifier: Apache-2.0
"""A walk through a plan without a network, before anything is taken: does a memory keep what it shows?

For memories that are not part of this package. A view of K/V that nobody has written, or more frames than
were promised, would otherwise come up in the middle of a video.
"""

from __future__ import annotations

from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.errors import PlanError
from ardiff_engine.memory import MemoryPolicy
from ardiff_engine.memory.view import contains
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Plan

MOST_TICKS = 1000


def rehearse(plan: Plan, memory: MemoryPolicy, spec: ModelSpec) -> None:
    """Raise PlanError if a view shows what is not there, or pages run out. Endless plans: the first ticks."""
    feeder, most = Feeder(plan, memory, spec), memory.most_frames(plan)
    held: set[tuple[int, int]] = set()
    ticks = MOST_TICKS if plan.num_ticks is None else min(plan.num_ticks, MOST_TICKS)
    while feeder.tick < ticks:
        feed = feeder.next()
        roster = feed.roster
        held = {cell for cell in held if contains(roster.kept, cell[0])}
        held.update(zip(roster.frames, roster.copies, strict=True))
        for frame, view in zip(roster.frames, roster.views, strict=True):
            shown = ((seen, run.copy) for run in view for seen in range(run.first, run.stop))
            lost = next((cell for cell in shown if cell not in held), None)
            if lost is not None:
                raise PlanError(
                    f"{memory!r} shows frame {frame} copy {lost[1]} of frame {lost[0]} in tick "
                    f"{feeder.tick}, which has never been written or is no longer kept"
                )
        if len(held) > most:
            raise PlanError(
                f"{memory!r} keeps {len(held)} frames in tick {feeder.tick} and promised {most}: correct its "
                "most_frames"
            )
        feeder.advance(feed)
