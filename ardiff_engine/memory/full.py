# SPDX-License-Identifier: Apache-2.0
"""Every frame stays visible for ever. Plain algorithm: the dense model on the whole video."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ardiff_engine.memory.policy import StoresClean, require_length
from ardiff_engine.memory.view import Fed, View, view_of, within
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Frames, Now, Plan


@dataclass(frozen=True, slots=True)
class Full(StoresClean):
    """joint: a block sees later frames too, once they have started (MMPL, Rolling Forcing); else all frames
    up to its own end."""

    joint: bool = False
    chunk = 16

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        require_length("memory.Full", plan, sys.maxsize if spec.longest is None else spec.longest)

    def most_frames(self, plan: Plan) -> int:
        assert plan.num_frames is not None, "check() refuses endless plans"
        return plan.num_frames

    def view(self, fed: Fed, now: Now) -> View:
        return view_of(now.started if self.joint else within(now.started, 0, fed.block.stop))

    def kept(self, oldest: range, now: Now) -> Frames:
        return now.started
