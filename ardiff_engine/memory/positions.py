# SPDX-License-Identifier: Apache-2.0
"""Where a view is seen: at the numbers of its frames, or elsewhere. Rotary positions only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.around import Around
from ardiff_engine.memory.policy import MemoryPolicy, require_cacheable
from ardiff_engine.memory.view import Fed, View
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Now, Plan

Positions = Literal["window", "anchored"]


def place(view: View, positions: Positions) -> View:
    """The view with its shifts.

    "window": its frames stand at 0, 1, 2, … in the order in which they are listed (Infinity-RoPE).
    "anchored": the last run stays at its numbers, and those before it end where the next one begins (the sink
        of Rolling Forcing).
    """
    stop = sum([run.stop - run.first for run in view]) if positions == "window" else view[-1].stop
    placed = []
    for run in reversed(view):
        stop -= run.stop - run.first
        placed.append(run._replace(shift=stop - run.first))
    return tuple(reversed(placed))


@dataclass(frozen=True, slots=True)
class Placed(Around):
    """memory: what is seen and kept; positions: where, as in `place`.

    A frame that is seen elsewhere than where its K/V were written has pages for both: K is turned from how it
    was written, so that nothing adds up. A pass sees every frame at one place. So blocks that see each other
    and move in one tick need a view that they share (`joint`), and a block whose own view has other places
    than theirs is stored in a pass of its own.
    """

    positions: Positions

    def __post_init__(self) -> None:
        if not isinstance(self.memory, MemoryPolicy) or self.positions not in ("window", "anchored"):
            raise ConfigError(
                f"memory.Placed({self.memory!r}, {self.positions!r}): give a memory, and 'window' or "
                "'anchored'"
            )
        if self.memory.by_layer:
            raise ConfigError(
                f"memory.Placed({self.memory!r:.80}): a page is turned to one place for all layers and "
                "heads, and theirs would differ where they see differently"
            )

    @property
    def chunk(self) -> int:
        return min(self.memory.chunk, 1)

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        self.memory.check(plan, spec)
        require_cacheable("memory.Placed", spec)
        if spec.frame_angles is None:
            raise ConfigError(
                f"memory.Placed({self.memory!r}) with a model whose spec has no frame_angles: its keys stay "
                "where they were written"
            )

    def most_frames(self, plan: Plan) -> int:
        return 2 * self.memory.most_frames(plan)

    def view(self, fed: Fed, now: Now) -> View:
        return place(self.memory.view(fed, now), self.positions)
