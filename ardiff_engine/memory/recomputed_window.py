# SPDX-License-Identifier: Apache-2.0
"""The window of the official AR-Diffusion sampler (arXiv 2503.07418; its sliding window): a pass sees the
last `size` frames and nothing else, at positions counted from the window's start.

A slide changes every position, so all K/V of the window are stale and its clean frames are stored again: once
per slide, not once per tick. Plain algorithm: the dense model on the window's frames, at every tick.
"""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.errors import ConfigError, PlanError
from ardiff_engine.memory.policy import Event, StoresClean, require_size
from ardiff_engine.memory.view import Fed, View, view_of, within
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Frames, Now, Plan


@dataclass(frozen=True, slots=True)
class RecomputedWindow(StoresClean):
    """size: frames in the window."""

    size: int
    chunk = 0
    proven = True

    def __post_init__(self) -> None:
        require_size("memory.RecomputedWindow", "size", self.size, 1)

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        if not plan.ordered:
            raise PlanError(f"memory.RecomputedWindow with {plan.rule}: frames in any order need memory.Full")
        plan.check_window(self.size)
        if spec.longest is not None and self.size > spec.longest:
            raise ConfigError(
                f"memory.RecomputedWindow size={self.size}: at most {spec.longest}, where this model's "
                "absolute positions end; use a smaller window"
            )
        if plan.longest_block == 1:
            return
        end = 4 * self.size if plan.num_frames is None else plan.num_frames
        for stop in range(self.size, end + 1):
            cut = plan.block(stop - self.size)
            if plan.block(stop - 1).stop == stop and cut.start != stop - self.size:
                raise PlanError(
                    f"memory.RecomputedWindow size={self.size} cuts the block of frames {cut.start}.."
                    f"{cut.stop - 1}: use a window of whole blocks ({plan.rule})"
                )

    def most_frames(self, plan: Plan) -> int:
        return self.size if plan.num_frames is None else min(self.size, plan.num_frames)

    def view(self, fed: Fed, now: Now) -> View:
        start = self._start(now)
        return view_of(within(now.started, start, fed.block.stop), shift=-start)

    def kept(self, oldest: range, now: Now) -> Frames:
        return within(now.started, self._start(now), now.newest + 1)

    def stale(self, event: Event, kept: Frames) -> Frames:
        return kept

    def _start(self, now: Now) -> int:
        return max(0, now.newest + 1 - self.size)
