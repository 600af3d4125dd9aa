# SPDX-License-Identifier: Apache-2.0
"""Where a view is seen: at the numbers of its frames, or elsewhere. Rotary positions only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.around import Around
from ardiff_engine.memory.policy import MemoryPolicy, require_cacheable
from ardiff_engine.memory.view import Fed, View
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Now, Plan


class Ahead(NamedTuple):
    """Frame 0, a reference, stands ahead of the video; all others at their numbers (Knot Forcing).

    Its place is `first` plus as many `step`s as it takes to be `lead` frames or more past the end
    of what a block sees.
    """

    first: int
    step: int
    lead: int = 0

    def place(self, view: View) -> View:
        run = view[0]
        if run.first:
            return view
        late = view[-1].stop + self.lead - self.first
        shift = self.first + self.step * max(0, -(-late // self.step))
        rest = (run._replace(first=1),) if run.stop > 1 else ()
        return (run._replace(stop=1, shift=shift), *rest, *view[1:])


Positions = Literal["window", "anchored"] | Ahead


def place(view: View, positions: Positions) -> View:
    """The view with its shifts.

    "window": its frames stand at 0, 1, 2, … in the order in which they are listed (Infinity-RoPE).
    "anchored": the last run stays at its numbers, and those before it end where the next one begins (the sink
        of Rolling Forcing). `Ahead`: frame 0 stands ahead of them.
    """
    if isinstance(positions, Ahead):
        return positions.place(view)
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
        ahead = isinstance(self.positions, Ahead) and self.positions.step > 0
        placed = ahead or self.positions in ("window", "anchored")
        if not isinstance(self.memory, MemoryPolicy) or not placed:
            raise ConfigError(
                f"memory.Placed({self.memory!r}, {self.positions!r}): give a memory, and 'window', "
                "'anchored' or memory.Ahead with steps of 1 or more"
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
