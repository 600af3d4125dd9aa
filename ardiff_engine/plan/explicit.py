# SPDX-License-Identifier: Apache-2.0
"""A plan given as a list of ticks: for rules that have no closed form, and for experiments."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from ardiff_engine.errors import PlanError
from ardiff_engine.plan.plan import Plan
from ardiff_engine.plan.sizes import check_frame, check_sizes, check_tick, whole
from ardiff_engine.plan.tick import Tick


class Maker(Protocol):
    """A rule: it makes the plan anew where a stream goes on from another frame."""

    def plan(self, num_frames: int | None, steps: tuple[int, ...], prefix: int = 0) -> Plan: ...


@dataclass(frozen=True, slots=True)
class ExplicitPlan(Plan):
    """Any finite plan. Only what is needed to read it is checked here; `verify()` checks the rules.

    blocks: of the whole video, in order; empty: every frame is one. maker: the rule that listed the ticks.
    """

    num_frames: int
    num_steps: int
    all_ticks: tuple[Tick, ...] = field(repr=False)
    prefix: int = 0
    ordered: bool = True
    blocks: tuple[range, ...] = ()
    maker: Maker | None = None
    _updated_in: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("num_frames", "num_steps", "prefix"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        check_sizes(self.num_frames, self.num_steps, self.prefix)
        if self.blocks and [f for block in self.blocks for f in block] != list(range(self.num_frames)):
            raise PlanError(f"blocks {self.blocks} do not follow each other over {self.num_frames} frames")
        updated_in: list[list[int]] = [[] for _ in range(self.num_frames)]
        for n, tick in enumerate(self.all_ticks):
            for frame in tick.frames:
                if not 0 <= frame < self.num_frames:
                    raise PlanError(
                        f"tick {n} feeds frame {frame}, outside the video of {self.num_frames}: "
                        "raise num_frames or drop it"
                    )
                updated_in[frame].append(n)
        object.__setattr__(self, "_updated_in", tuple(map(tuple, updated_in)))

    @property
    def num_ticks(self) -> int:
        return len(self.all_ticks)

    @property
    def max_live(self) -> int:
        live = [now.newest + 1 - now.oldest_unfinished for now in map(self.now, range(self.num_ticks))]
        return max(live, default=0)

    @property
    def rule(self) -> str:
        return "explicit" if self.maker is None else str(self.maker)

    def tick(self, n: int) -> Tick:
        n = check_tick(n, self.num_ticks)
        return self.all_ticks[n]

    def level(self, frame: int, n: int) -> int:
        frame, n = check_frame(frame, self.num_frames), whole("tick", n)
        if frame < self.prefix:
            return self.num_steps
        return min(bisect_left(self._updated_in[frame], n), self.num_steps)

    def newest(self, n: int) -> int:
        generated = range(self.num_frames - 1, self.prefix - 1, -1)
        started = (f for f in generated if self._updated_in[f] and self._updated_in[f][0] <= n)
        return next(started, self.prefix - 1)

    def oldest_unfinished(self, n: int) -> int:
        unfinished = (f for f in range(self.prefix, self.num_frames) if self.level(f, n) < self.num_steps)
        return next(unfinished, self.num_frames)

    def block(self, frame: int) -> range:
        if not self.blocks:
            return range(frame, frame + 1)
        return next(block for block in self.blocks if frame in block)

    @property
    def longest_block(self) -> int:
        return max(map(len, self.blocks), default=1)

    def continued(self, prefix: int) -> Plan:
        if self.maker is None:
            return Plan.continued(self, prefix)
        return self.maker.plan(self.num_frames, (self.num_steps,), prefix)

    def extended(self, frames: int) -> Plan:
        if self.maker is None:
            return Plan.extended(self, frames)
        return self.maker.plan(self.num_frames + frames, (self.num_steps,), self.prefix)


def explicit(
    ticks: Iterable[Tick],
    num_frames: int,
    num_steps: int,
    prefix: int = 0,
    ordered: bool = True,
    blocks: Iterable[range] = (),
) -> ExplicitPlan:
    """A plan from its ticks. Nothing but sizes is checked: call `verify()` on it; `Engine.submit` does.

    Args:
        ticks: all of them, in order.
        num_frames: frames of the video, prefix included.
        num_steps: solver steps of each frame.
        prefix: frames that are given.
        ordered: False for a rule in which a frame may be noisier than a later one.
        blocks: that follow each other over the whole video; none: every frame is one.
    """
    return ExplicitPlan(num_frames, num_steps, tuple(ticks), prefix, ordered, tuple(blocks))
