# SPDX-License-Identifier: Apache-2.0
"""One block after the other (Self-Forcing, CausVid, LongLive), each with a list of steps of its own.

Block b follows track min(b, last): with tracks of 4, 3 and 2 steps it starts in tick 0, 4, 7, 9, 11, …
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ardiff_engine.errors import PlanError
from ardiff_engine.plan.cut import Cut
from ardiff_engine.plan.plan import Plan
from ardiff_engine.plan.sizes import whole
from ardiff_engine.plan.staircase import Staircase


@dataclass(frozen=True, slots=True)
class BlocksPlan(Staircase):
    """tracks: steps of each track. skipped: blocks that had followed their tracks before the given frames
    ended, where a plan goes on from another one."""

    num_frames: int | None
    tracks: tuple[int, ...]
    prefix: int = 0
    cut: Cut = Cut()
    skipped: int = 0
    ordered: bool = True
    num_steps: int = 0

    def __post_init__(self) -> None:
        tracks = tuple(whole("steps of a track", steps) for steps in self.tracks)
        object.__setattr__(self, "tracks", tracks)
        object.__setattr__(self, "num_steps", max(tracks, default=0))
        self._check()
        if min(tracks) < 1:
            raise PlanError(f"tracks of {tracks} steps: each block needs 1 step or more")

    @property
    def rule(self) -> str:
        steps = "" if len(self.tracks) == 1 else f", steps {'/'.join(map(str, self.tracks))}"
        return f"{self.cut}{steps}"

    def track(self, frame: int) -> int:
        return max(0, min(self._number(frame) + self.skipped, len(self.tracks) - 1))

    def steps(self, frame: int) -> int:
        return self.tracks[self.track(frame)]

    def continued(self, prefix: int) -> Plan:
        passed = self.cut.number(prefix) - self.cut.number(self.prefix)
        return replace(self, prefix=prefix, skipped=self.skipped + passed)

    def _steps(self, number: int) -> int:
        return self.tracks[min(number + self.skipped, len(self.tracks) - 1)]

    def _start(self, number: int) -> int:
        # Block `skipped` would be generated block 0, so that starts count from its own.
        return self._sum(self.skipped + number) - self._sum(self.skipped)

    def _sum(self, count: int) -> int:
        return sum(self.tracks[:count]) + max(0, count - len(self.tracks)) * self.tracks[-1]

    @property
    def _alike_from(self) -> int:
        return max(1, len(self.tracks) - self.skipped)

    def _starts_until(self, n: int) -> int:
        number, start, alike = 0, 0, self._alike_from
        while number < alike and start + self._steps(number) <= n:
            start += self._steps(number)
            number += 1
        return number + 1 + (n - start) // self.tracks[-1] if number == alike else number + 1

    def _ends_until(self, n: int) -> int:
        return self._starts_until(n) - 1


@dataclass(frozen=True, slots=True)
class BlocksRule:
    cut: Cut

    def plan(self, num_frames: int | None, steps: tuple[int, ...], prefix: int = 0) -> BlocksPlan:
        return BlocksPlan(num_frames, steps, prefix, self.cut)
