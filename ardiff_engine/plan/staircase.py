# SPDX-License-Identifier: Apache-2.0
"""Plans in which blocks start one after the other and then move in every tick until they are finished.

All answers follow from the tick in which each block starts, if no block finishes before an earlier one.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ardiff_engine.errors import PlanError
from ardiff_engine.plan.cut import Cut
from ardiff_engine.plan.now import Frames, Now
from ardiff_engine.plan.plan import Plan
from ardiff_engine.plan.sizes import check_frame, check_sizes, check_tick, whole
from ardiff_engine.plan.tick import Cycle, Tick


class Staircase(Plan):
    """cut: the blocks of the whole video. Generated blocks count from 0, after the given ones."""

    __slots__ = ()

    cut: Cut

    @abstractmethod
    def _start(self, number: int) -> int:
        """Tick in which generated block `number` starts; not before the start of the one before it."""

    def _steps(self, number: int) -> int:
        """Ticks for which it moves."""
        return self.num_steps

    def _starts_until(self, n: int) -> int:
        """How many generated blocks start in tick n or before, in a video that is long enough."""
        count = self._count
        assert count is not None, "endless rules have a closed form"
        return bisect_right(range(count), n, key=self._start)

    def _ends_until(self, n: int) -> int:
        """How many generated blocks have taken their last step before tick n, in a long enough video."""
        count = self._count
        assert count is not None, "endless rules have a closed form"
        return bisect_right(range(count), n, key=self._end)

    # --- what every rule answers

    @property
    def num_ticks(self) -> int | None:
        count = self._count
        return None if count is None else self._end(count - 1)

    @property
    def max_live(self) -> int:
        # The most frames are in flight when a block takes its last step. Once the tracks are over, all
        # blocks are alike.
        count = self._count
        first = self.cut.number(self.prefix)
        last = self._alike_from + 2 if count is None else min(count, self._alike_from + 2)
        live = (
            self.newest(self._end(number) - 1) + 1 - self.cut.begin(first + number) for number in range(last)
        )
        return max(live)

    @property
    def _alike_from(self) -> int:
        """Blocks from this one on start at equal distances and move equally long."""
        return 1

    def check_window(self, window: int, *, keep_given: bool = True) -> None:
        if self.num_frames is not None:
            return super().check_window(window, keep_given=keep_given)
        # As many blocks as `max_live` looks at: what follows is alike.
        begun: Plan = replace(self, num_frames=self._first_frame(self._alike_from + 2))  # type: ignore[type-var]
        return begun.check_window(window, keep_given=keep_given)

    def tick(self, n: int) -> Tick:
        n = check_tick(n, self.num_ticks)
        first, last = self._live(n)
        if last == first + 1 or self.cut.size > 1 or self.cut.first > 1:
            frames: list[int] = []
            levels: list[int] = []
            given = self.cut.number(self.prefix)
            for number in range(first, last):
                block = self.cut.block(given + number)
                block = range(max(block.start, self.prefix), block.stop)
                frames += block
                levels += [n - self._start(number)] * len(block)
            return Tick(n, tuple(frames), tuple(levels))
        return Tick(
            n,
            tuple(range(self.prefix + first, self.prefix + last)),
            tuple([n - self._start(number) for number in range(first, last)]),
        )

    def level(self, frame: int, n: int) -> int:
        frame, n = check_frame(frame, self.num_frames), whole("tick", n)
        if frame < self.prefix:
            return self.steps(frame)
        number = self._number(frame)
        return min(max(n - self._start(number), 0), self._steps(number))

    def levels(self, num_ticks: int | None = None) -> npt.NDArray[np.int64]:
        rows, columns = self.shape(num_ticks)
        numbers = [self._number(frame) for frame in range(self.prefix, columns)]
        starts = np.array([0] * self.prefix + [self._start(number) for number in numbers], np.int64)
        steps = np.array([self.steps(frame) for frame in range(columns)], np.int64)
        levels = np.clip(np.arange(1, rows + 1)[:, None] - starts, 0, steps)
        levels[:, : self.prefix] = steps[: self.prefix]
        return levels

    def newest(self, n: int) -> int:
        return self._first_frame(self._live(n)[1]) - 1

    def oldest_unfinished(self, n: int) -> int:
        return self._first_frame(self._live(n)[0])

    def now(self, n: int) -> Now:
        first, last = self._live(n)
        oldest, end = self._first_frame(first), self._first_frame(last)
        return Now(_run(0, end), _run(oldest, end), _run(0, oldest))

    def block(self, frame: int) -> range:
        return self.cut.block(self.cut.number(frame))

    @property
    def longest_block(self) -> int:
        return max(self.cut.size, self.cut.first)

    def steps(self, frame: int) -> int:
        return self.num_steps if frame < self.prefix else self._steps(self._number(frame))

    def steady_until(self, n: int) -> int:
        first, last = self._live(n)
        count = self._count
        ends = [self._end(first)] if first < last else []
        if count is None or last < count:
            ends.append(self._start(last))
        return max(n + 1, min(ends, default=n + 1))

    def cycle(self, n: int) -> Cycle | None:
        # The block before the oldest one in flight is alike, too: when it ended follows from when it started.
        first, alike, count = self._live(n)[0], self._alike_from, self._count
        if first <= alike or (count is not None and first >= count):
            return None
        every = self._start(alike + 1) - self._start(alike)
        return Cycle(every, self.cut.size, None if count is None else self._start(count)) if every else None

    def continued(self, prefix: int) -> Plan:
        return replace(self, prefix=prefix)  # type: ignore[type-var]

    def extended(self, frames: int) -> Plan:
        if self.num_frames is None:
            raise PlanError("an endless plan cannot be made longer")
        changes: dict[str, Any] = {"num_frames": self.num_frames + whole("frames", frames)}
        return replace(self, **changes)  # type: ignore[type-var]

    # --- for rules

    def _check(self) -> None:
        """The sizes as integers; PlanError for those that make no plan."""
        for name in ("num_frames", "num_steps", "prefix"):
            if name != "num_frames" or self.num_frames is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name)))
        check_sizes(self.num_frames, self.num_steps, self.prefix)
        if not self.cut.given_within:
            self.cut.check("given frames", self.prefix)
        if self.num_frames is not None:
            self.cut.check("the video", self.num_frames)

    @property
    def _count(self) -> int | None:
        """Generated blocks; None for an endless video."""
        cut = self.cut
        return None if self.num_frames is None else cut.number(self.num_frames) - cut.number(self.prefix)

    def _number(self, frame: int) -> int:
        return self.cut.number(frame) - self.cut.number(self.prefix)

    def _first_frame(self, number: int) -> int:
        return max(self.prefix, self.cut.begin(self.cut.number(self.prefix) + number))

    def _end(self, number: int) -> int:
        return self._start(number) + self._steps(number)

    def _live(self, n: int) -> tuple[int, int]:
        """Generated blocks that are unfinished before tick n and have started by then: from, up to."""
        if n < 0:
            return 0, 0
        count = self._count
        first, last = self._ends_until(n), self._starts_until(n)
        return (first, last) if count is None else (min(first, count), min(last, count))


def _run(start: int, stop: int) -> Frames:
    return (range(start, stop),) if stop > start else ()
