# SPDX-License-Identifier: Apache-2.0
"""The rolling cache of Self-Forcing, LongLive (arXiv 2509.22622) and their relatives: K/V are computed once,
when a block is finished, and keep carrying what was visible then.

Plain algorithm: one dense pass over all frames in which the frames of a block see the context, the first
`sink` frames and the last `size` frames up to the end of their block, at absolute positions. RoPE only.
"""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.errors import PlanError
from ardiff_engine.memory.policy import StoresClean, require_cacheable, require_rope, require_size
from ardiff_engine.memory.view import Fed, View, union, view_of, within
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Frames, Now, Plan


@dataclass(frozen=True, slots=True)
class Window(StoresClean):
    """size: last frames that a block sees, itself included. sink: leading frames that stay visible besides.
        So Window(9, sink=3) shows up to 12 frames; where a paper counts the sink in its window, subtract it.

    joint: blocks in flight see each other, later ones too, and the last `size` frames up to the newest one
        (Rolling Forcing).
    clean: K/V of a finished block are computed again from its clean frames; without, those of its last step
        stay (Diagonal Distillation).
    stored: frames that a block sees when it is stored, without the sink; 0: the same as when it moves.
    back: finished frames, whole blocks, that `Stream.rollback` can forget with the K/V of all earlier ones as
        they were. So many more frames stay. Behind that, K/V are computed anew, which is not the same to the
        bit, and which endless streams cannot do.
    """

    size: int
    sink: int = 0
    joint: bool = False
    clean: bool = True
    stored: int = 0
    back: int = 0
    proven = True

    def __post_init__(self) -> None:
        require_size("memory.Window", "size", self.size, 1)
        require_size("memory.Window", "sink", self.sink, 0)
        require_size("memory.Window", "stored", self.stored, 0)
        require_size("memory.Window", "back", self.back, 0)

    @property
    def chunk(self) -> int:
        # A chunk's pages come beside those of the window before it.
        return -(-self.size // 4)

    @property
    def slides_after(self) -> int | None:
        # A subclass may answer otherwise.
        return self.sink if type(self) is Window else None

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        require_rope("memory.Window", spec)
        require_cacheable("memory.Window", spec)
        if not plan.ordered:
            raise PlanError(f"memory.Window with {plan.rule}: frames in any order need memory.Full")
        if self.joint or (self.size == 1 and not self.sink):
            plan.check_window(self.size, keep_given=self.size == 1 and not self.sink)
        elif self.size < plan.longest_block:
            raise PlanError(
                f"memory.Window size={self.size} with {plan.rule}: a block sees itself, so use "
                f"{plan.longest_block} or more"
            )

    def most_frames(self, plan: Plan) -> int:
        # The oldest block that a tick feeds may be one that is only stored, before the oldest unfinished one.
        size = max(self.size, self.stored) + self.back
        frames = self.sink + size - 1 + max(plan.max_live + plan.longest_block, self.chunk)
        return frames if plan.num_frames is None else min(frames, plan.num_frames)

    def view(self, fed: Fed, now: Now) -> View:
        if self.stored and fed.stores:
            first = min(fed.block.stop - self.stored, fed.block.start)
            return view_of(within(now.started, first, fed.block.stop))
        stop = now.newest + 1 if self.joint and not fed.stores else fed.block.stop
        return view_of(self._seen(range(fed.block.start, stop), within(now.started, 0, stop), self.size))

    def kept(self, oldest: range, now: Now) -> Frames:
        return self._seen(oldest, now.started, max(self.size, self.stored))

    def stores(self, fed: Fed) -> bool:
        return self.clean and fed.level == fed.steps

    def _seen(self, block: range, frames: Frames, size: int) -> Frames:
        first = min(block.stop - size, block.start)
        if first <= self.sink:
            return frames
        recent = within(frames, first, frames[-1].stop)
        return union(within(frames, 0, self.sink), recent) if self.sink else recent
