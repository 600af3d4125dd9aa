# SPDX-License-Identifier: Apache-2.0
"""A copy of each block's K/V per level, so that a block reads earlier ones as they were at its own step.

HiAR: a block at level s reads blocks that have taken step s, stored again at level s + 1 after it.
SoulX-LiveAct and StreamDiffusionV2: it reads what their own step s wrote, and no pass is spent on storing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.full import Full
from ardiff_engine.memory.policy import Event, StoresClean, require_cacheable
from ardiff_engine.memory.view import Fed, View, view_of, within
from ardiff_engine.memory.window import Window
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Frames, Now, Plan


@dataclass(frozen=True, slots=True)
class PerLevel(StoresClean):
    """memory: which frames are seen and kept, each in all of its copies.

    context: "next": K/V stored at the level after the step; "same": those that the step itself wrote.
    ahead: leading frames that are finished before the others start, and seen clean at all levels.
    """

    memory: Full | Window
    context: Literal["next", "same"] = "next"
    ahead: int = 0
    by_level = proven = True

    def __post_init__(self) -> None:
        plain = type(self.memory) in (Full, Window) and not self.memory.joint
        if not plain or self.context not in ("next", "same"):
            raise ConfigError(
                f"memory.PerLevel({self.memory!r}, {self.context!r}): use Full or Window, not joint, and "
                "context 'next' or 'same'"
            )

    @property
    def chunk(self) -> int:
        return self.memory.chunk

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        self.memory.check(plan, spec)
        require_cacheable("memory.PerLevel", spec)
        frames = range(1024 if plan.num_frames is None else plan.num_frames)
        if not plan.ordered or any(plan.steps(frame) != plan.num_steps for frame in frames):
            raise ConfigError(
                f"memory.PerLevel with {plan.rule}: every block reads earlier ones at its own level, so all "
                "need the same number of steps, and none may come before an earlier one"
            )
        if plan.prefix:
            raise ConfigError(
                f"memory.PerLevel with {plan.prefix} given frames: they have never been at the levels "
                "between, so that there is no K/V of them to read"
            )

    def most_frames(self, plan: Plan) -> int:
        return self.memory.most_frames(plan) * plan.num_steps

    def view(self, fed: Fed, now: Now) -> View:
        copy = self.copy(fed)
        seen = self.memory.view(fed, now)
        if fed.block.start < self.ahead:
            return tuple([run._replace(copy=copy) for run in seen])
        frames = tuple([range(run.first, run.stop) for run in seen])
        ahead = view_of(within(frames, 0, self.ahead), copy=fed.steps - 1)
        return ahead + view_of(within(frames, self.ahead, fed.block.stop), copy=copy)

    def kept(self, oldest: range, now: Now) -> Frames:
        return self.memory.kept(oldest, now)

    def stores(self, fed: Fed) -> bool:
        return self.context == "next" and (fed.level == fed.steps or fed.block.start >= self.ahead)

    def copy(self, fed: Fed) -> int:
        return fed.level - fed.stores

    def stale(self, event: Event, kept: Frames) -> Frames:
        # Levels that are over cannot be stored again.
        return ()
