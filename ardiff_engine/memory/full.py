# SPDX-License-Identifier: Apache-2.0
"""Every frame stays visible for ever. Plain algorithm: the dense model on the whole video."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ardiff_engine.memory.policy import require_length
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Plan

PREFILL_FRAMES = 16


@dataclass(frozen=True, slots=True)
class Full:
    def check(self, plan: Plan, spec: ModelSpec) -> None:
        require_length("memory.Full", plan, sys.maxsize if spec.longest is None else spec.longest)

    def max_frames(self, plan: Plan) -> int:
        assert plan.num_frames is not None, "check() refuses endless plans"
        return plan.num_frames

    def sinks(self) -> int:
        return 0

    def first_seen(self, frame: int, newest: int) -> int:
        return 0

    def first_held(self, oldest: int, newest: int) -> int:
        return 0

    def origin(self, newest: int) -> int:
        return 0

    def prefill(self, prefix: int) -> list[range]:
        return [
            range(start, min(start + PREFILL_FRAMES, prefix)) for start in range(0, prefix, PREFILL_FRAMES)
        ]
