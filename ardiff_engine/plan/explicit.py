# SPDX-License-Identifier: Apache-2.0
"""A plan given as a list of ticks: for rules that have no closed form, and for experiments."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

from ardiff_engine.errors import PlanError, explain
from ardiff_engine.plan.plan import Plan
from ardiff_engine.plan.sizes import check_frame, check_sizes, check_tick, whole
from ardiff_engine.plan.tick import Kind, Tick


@dataclass(frozen=True, slots=True)
class ExplicitPlan(Plan):
    """Any finite plan. Only what is needed to read it is checked here; `verify()` checks the rules."""

    num_frames: int
    num_steps: int
    all_ticks: tuple[Tick, ...] = field(repr=False)
    prefix: int = 0
    ordered: bool = True
    _updated_in: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("num_frames", "num_steps", "prefix"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        check_sizes(self.num_frames, self.num_steps, self.prefix)
        updated_in: list[list[int]] = [[] for _ in range(self.num_frames)]
        for n, tick in enumerate(self.all_ticks):
            for frame, kind in zip(tick.frames, tick.kinds, strict=True):
                if not 0 <= frame < self.num_frames:
                    raise PlanError(
                        explain(
                            f"tick {n} feeds a frame outside the video",
                            got=frame,
                            expected=f"0..{self.num_frames - 1}",
                            fix="Raise num_frames or drop the cell.",
                        )
                    )
                if kind is Kind.UPDATE:
                    updated_in[frame].append(n)
        object.__setattr__(self, "_updated_in", tuple(map(tuple, updated_in)))

    @property
    def num_ticks(self) -> int:
        return len(self.all_ticks)

    @property
    def max_live(self) -> int:
        return max((self._live(n) for n in range(self.num_ticks)), default=0)

    def tick(self, n: int) -> Tick:
        n = check_tick(n, self.num_ticks)
        return self.all_ticks[n]

    def level(self, frame: int, n: int) -> int:
        return self._level(check_frame(frame, self.num_frames), whole("tick", n))

    def _level(self, frame: int, n: int) -> int:
        if frame < self.prefix:
            return self.num_steps
        return min(bisect_left(self._updated_in[frame], n), self.num_steps)

    def newest(self, n: int) -> int:
        started = (f for f in range(self.num_frames - 1, self.prefix - 1, -1) if self._has_started(f, n))
        return next(started, self.prefix - 1)

    def oldest_unfinished(self, n: int) -> int:
        unfinished = (f for f in range(self.prefix, self.num_frames) if self._level(f, n) < self.num_steps)
        return next(unfinished, self.num_frames)

    def _has_started(self, frame: int, n: int) -> bool:
        return bool(self._updated_in[frame]) and self._updated_in[frame][0] <= n

    def _live(self, n: int) -> int:
        frames = range(self.prefix, self.num_frames)
        return sum(self._has_started(f, n) and self._level(f, n) < self.num_steps for f in frames)


def explicit(
    ticks: Iterable[Tick], num_frames: int, num_steps: int, prefix: int = 0, ordered: bool = True
) -> ExplicitPlan:
    """A plan from its ticks. Nothing but sizes is checked: call `verify()` on it.

    Args:
        ticks: all of them, in order.
        num_frames: frames of the video, prefix included.
        num_steps: solver steps of each frame.
        prefix: frames that are given.
        ordered: False for a rule in which a frame may be noisier than a later one.
    """
    return ExplicitPlan(num_frames, num_steps, tuple(ticks), prefix, ordered)
