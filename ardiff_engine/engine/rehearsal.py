# SPDX-License-Identifier: Apache-2.0
"""A walk through a plan without a network, before anything is taken: does a memory keep what it shows?

For memories that are not part of this package. A view of K/V that nobody has written, or more frames than
were promised, would otherwise come up in the middle of a video.
"""

from __future__ import annotations

from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.errors import ConfigError, PlanError
from ardiff_engine.memory import MemoryPolicy
from ardiff_engine.memory.routed import unasked
from ardiff_engine.memory.view import agree, contains
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Plan

MOST_TICKS = 1000


def rehearse(plan: Plan, memory: MemoryPolicy, spec: ModelSpec) -> None:
    """Raise PlanError if a view shows what is not there, or pages run out. Endless plans: the first ticks."""
    feeder, most = Feeder(plan, unasked(memory), spec), memory.most_frames(plan)
    held: dict[tuple[int, int], int] = {}
    ticks = MOST_TICKS if plan.num_ticks is None else min(plan.num_ticks, MOST_TICKS)
    while feeder.tick < ticks:
        feed = feeder.next()
        roster = feed.roster
        held = {cell: shift for cell, shift in held.items() if contains(roster.kept, cell[0])}
        for frame, copy, position in zip(roster.frames, roster.copies, roster.positions, strict=True):
            held[frame, copy] = position - frame
        for made in roster.made:
            gone = [source for source in made.sources if source not in held]
            if made.cell not in held and gone:
                raise PlanError(
                    f"{memory!r} makes copy {made.cell[1]} of frame {made.cell[0]} in tick {feeder.tick} of "
                    f"frames and copies {gone}, which have never been written or are no longer kept"
                )
            held.setdefault(made.cell, made.shift)
        placed: set[tuple[int, int]] = set()
        for frame, view in zip(roster.frames, roster.views, strict=True):
            shown = [((seen, run.copy), run.shift) for run in view for seen in range(run.first, run.stop)]
            lost = next((cell for cell, _ in shown if cell not in held), None)
            if lost is not None:
                raise PlanError(
                    f"{memory!r} shows frame {frame} copy {lost[1]} of frame {lost[0]} in tick "
                    f"{feeder.tick}, which has never been written or is no longer kept"
                )
            placed.update([cell for cell, shift in shown if held[cell] != shift])
        if not agree(roster.views):
            raise PlanError(
                f"{memory!r} shows a frame at two places in tick {feeder.tick}, and a pass sees it at one: "
                "let blocks that move together share a view (joint), or move one after the other"
            )
        if placed and spec.frame_angles is None:
            raise ConfigError(
                f"{memory!r} shows frames elsewhere than they were written, and the spec of the model has no "
                "frame_angles to turn their keys by"
            )
        if len(held) + len(placed) > most:
            raise PlanError(
                f"{memory!r} keeps {len(held) + len(placed)} frames in tick {feeder.tick} and promised "
                f"{most}: correct its most_frames"
            )
        feeder.advance(feed)
