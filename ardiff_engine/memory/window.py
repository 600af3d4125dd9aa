# SPDX-License-Identifier: Apache-2.0
"""The rolling cache of LongLive (arXiv 2509.22622) and its relatives: K/V are computed once, when a frame is
committed, and keep carrying what was visible then.

Plain algorithm: one dense pass over all frames in which frame f sees the context, the first `sink` frames and
frames f-size+1..f, at absolute positions. RoPE only.
"""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.memory.policy import require_cacheable, require_rope, require_size
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Plan


@dataclass(frozen=True, slots=True)
class Window:
    """size: frames that a frame sees, itself included. sink: leading frames that stay visible besides."""

    size: int
    sink: int = 0

    def __post_init__(self) -> None:
        require_size("memory.Window", "size", self.size, 1)
        require_size("memory.Window", "sink", self.sink, 0)

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        require_rope("memory.Window", spec)
        require_cacheable("memory.Window", spec)
        # Each frame has a window of its own, so frames in flight together cannot push the given ones out.
        plan.check_window(self.size, keep_given=self.size == 1 and not self.sink)

    def max_frames(self, plan: Plan) -> int:
        # The oldest frame that a tick feeds may be one that only commits, one before the oldest unfinished
        # one.
        frames = self.sink + self.size - 1 + max(plan.max_live + 1, self.size)
        return frames if plan.num_frames is None else min(frames, plan.num_frames)

    def sinks(self) -> int:
        return self.sink

    def first_seen(self, frame: int, newest: int) -> int:
        return max(0, frame - self.size + 1)

    def first_held(self, oldest: int, newest: int) -> int:
        return max(0, oldest - self.size + 1)

    def origin(self, newest: int) -> int:
        return 0

    def prefill(self, prefix: int) -> list[range]:
        return [range(start, min(start + self.size, prefix)) for start in range(0, prefix, self.size)]
