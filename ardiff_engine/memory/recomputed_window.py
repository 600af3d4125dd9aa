# SPDX-License-Identifier: Apache-2.0
"""The window of the official AR-Diffusion sampler (arXiv 2503.07418; its sliding window): a pass sees the
last `size` frames and nothing else, at positions counted from the window's start.

A slide changes every position, so all K/V of the window are stale and its clean frames are committed again:
once per slide, not once per tick. Plain algorithm: the dense model on the window's frames, at every tick.
"""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.memory.policy import require_size
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Plan


@dataclass(frozen=True, slots=True)
class RecomputedWindow:
    """size: frames in the window."""

    size: int

    def __post_init__(self) -> None:
        require_size("memory.RecomputedWindow", "size", self.size, 1)

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        plan.check_window(self.size)
        if spec.longest is not None and self.size > spec.longest:
            raise ConfigError(
                explain(
                    "memory.RecomputedWindow size",
                    got=self.size,
                    expected=f"at most {spec.longest}, where this model's absolute positions end",
                    fix="Use a smaller window.",
                )
            )

    def max_frames(self, plan: Plan) -> int:
        return self.size if plan.num_frames is None else min(self.size, plan.num_frames)

    def sinks(self) -> int:
        return 0

    def first_seen(self, frame: int, newest: int) -> int:
        return self.origin(newest)

    def first_held(self, oldest: int, newest: int) -> int:
        return self.origin(newest)

    def origin(self, newest: int) -> int:
        return max(0, newest + 1 - self.size)

    def prefill(self, prefix: int) -> list[range]:
        return []
