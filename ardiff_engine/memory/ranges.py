# SPDX-License-Identifier: Apache-2.0
"""MAGI-1's ranges (arXiv 2505.13211): the noisier a block is, the further back it sees."""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.policy import StoresClean, require_cacheable, require_rope, require_size
from ardiff_engine.memory.view import Fed, View, view_of, within
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Frames, Now, Plan


@dataclass(frozen=True, slots=True)
class Ranges(StoresClean):
    """stages: frames that a block sees, itself included, in each of equally long stages, noisiest first.
    clean: when it is stored."""

    stages: tuple[int, ...]
    clean: int
    by_level = proven = True

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("memory.Ranges without stages: give one range or more")
        for size in (*self.stages, self.clean):
            require_size("memory.Ranges", "range", size, 1)

    @property
    def chunk(self) -> int:
        return -(-self.clean // 4)  # as in Window

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        require_rope("memory.Ranges", spec)
        require_cacheable("memory.Ranges", spec)
        if not plan.ordered or plan.num_steps % len(self.stages):
            raise ConfigError(
                f"memory.Ranges of {len(self.stages)} stages with {plan.summary}: use a divisor"
            )

    def most_frames(self, plan: Plan) -> int:
        most = max(*self.stages, self.clean)
        frames = most - 1 + max(plan.max_live + plan.longest_block, self.chunk)
        return frames if plan.num_frames is None else min(frames, plan.num_frames)

    def view(self, fed: Fed, now: Now) -> View:
        stage = fed.level * len(self.stages) // fed.steps
        size = self.clean if fed.stores else self.stages[stage]
        first = min(fed.block.stop - size, fed.block.start)
        return view_of(within(now.started, first, fed.block.stop))

    def kept(self, oldest: range, now: Now) -> Frames:
        first = oldest.stop - max(*self.stages, self.clean)
        return within(now.started, min(first, oldest.start), now.newest + 1)
