# SPDX-License-Identifier: Apache-2.0
"""Every frame stays visible for ever. Plain algorithm: the dense model on the whole video."""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.errors import ConfigError, PlanError
from ardiff_engine.memory.policy import StoresClean, require_length
from ardiff_engine.memory.view import Fed, View, union, view_of, within
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Frames, Now, Plan


@dataclass(frozen=True, slots=True)
class Full(StoresClean):
    """joint: a block that moves sees all frames that have started, later ones too, and one that is stored all
    that are finished by then (MMPL); else all frames up to its own end."""

    joint: bool = False
    proven = True

    @property
    def chunk(self) -> int:
        return 1 if self.joint else 16

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        if plan.num_frames is None:
            raise PlanError(
                "memory.Full with an endless video: it keeps all frames. memory.Window and "
                "memory.RecomputedWindow take endless ones"
            )
        require_length("memory.Full", plan, spec.longest)
        if self.joint and not (spec.forgets or spec.frames_see_later):
            raise ConfigError(
                "memory.Full(joint=True) with a network that is fed all frames in every pass and lets none "
                "see later ones: it would change nothing. Use memory.Full()"
            )

    def most_frames(self, plan: Plan) -> int:
        assert plan.num_frames is not None, "check() refuses endless plans"
        return plan.num_frames

    def view(self, fed: Fed, now: Now) -> View:
        if not self.joint:
            return view_of(within(now.started, 0, fed.block.stop))
        return view_of(union(now.finished, (fed.block,)) if fed.stores else now.started)

    def kept(self, oldest: range, now: Now) -> Frames:
        return now.started
