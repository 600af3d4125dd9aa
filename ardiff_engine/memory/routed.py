# SPDX-License-Identifier: Apache-2.0
"""Routed memory: beside a window, each block sees a few earlier frames that a router chooses for it when it
starts (CausalCine, arXiv 2605.12496; Memory Forcing, arXiv 2510.03198)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ardiff_engine.errors import ConfigError, PlanError
from ardiff_engine.memory.around import Around
from ardiff_engine.memory.policy import MemoryPolicy, require_length, require_size
from ardiff_engine.memory.view import Fed, View, frames_in, numbers, union, view_of, within
from ardiff_engine.memory.window import Window
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Frames, Now, Plan
from ardiff_engine.plan.now import frames_of

Router = Callable[[range, Sequence[int], int], Iterable[int]]
"""(block, candidates, count) -> at most `count` of the candidates, which are finished frames in ascending
order. Asked once, when the block starts, on the host. What it goes by has to be there by then: what passes
before this one have measured, where the camera will be."""


def latest(block: range, candidates: Sequence[int], count: int) -> Sequence[int]:
    """The router that makes the window longer."""
    return candidates[-count:]


def highest(score: Callable[[range, int], float]) -> Router:
    """The router that takes the frames of the highest score(block, frame); of equal ones the later."""

    def choose(block: range, candidates: Sequence[int], count: int) -> list[int]:
        return sorted(candidates, key=lambda frame: (score(block, frame), frame))[-count:]

    return choose


def unasked(memory: MemoryPolicy) -> MemoryPolicy:
    """The memory with `latest` for its router: for walks that come before the video."""
    if isinstance(memory, Routed):
        return replace(memory, router=latest)
    return replace(memory, memory=unasked(memory.memory)) if isinstance(memory, Around) else memory


@dataclass(frozen=True, slots=True)
class Routed(Around):
    """memory: the window. count: most frames that a block sees besides. router: chooses them from those
    before the window and behind its sink.

    history: how many of the latest ones of these stay, and may be chosen; None: all, in finite videos.
    chosen: first frame of a block, and what was chosen for it. The engine fills it in: what a block sees does
        not change while it moves or when it is stored.

    A router that names a frame that is not there ends its stream with PlanError.
    """

    memory: Window
    count: int
    router: Router = latest
    history: int | None = None
    chosen: tuple[tuple[int, Frames], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.memory, Window) or self.memory.joint or self.memory.stored:
            raise ConfigError(
                f"memory.Routed({self.memory!r}): use a Window, not joint, that stores as it moves"
            )
        if not callable(self.router):
            raise ConfigError(f"memory.Routed: router {self.router!r:.80}, expected a function")
        require_size("memory.Routed", "count", self.count, 1)
        if self.history is not None:
            require_size("memory.Routed", "history", self.history, self.count)

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        self.memory.check(plan, spec)
        if self.history is None:
            require_length("memory.Routed without a history", plan, spec.longest or 1 << 62)

    def most_frames(self, plan: Plan) -> int:
        if self.history is None:
            assert plan.num_frames is not None, "check() refuses endless plans"
            return plan.num_frames
        most = self.memory.most_frames(plan) + self.history
        return most if plan.num_frames is None else min(most, plan.num_frames)

    def view(self, fed: Fed, now: Now) -> View:
        chosen = dict(self.chosen).get(fed.block.start, ())
        return view_of(union(frames_in([self.memory.view(fed, now)]), chosen))

    def kept(self, oldest: range, now: Now) -> Frames:
        before = within(now.started, self._oldest(oldest), now.newest + 1)
        return union(self.memory.kept(oldest, now), before)

    def begun(self, block: range, now: Now) -> Routed:
        window = self._window(block)
        candidates = numbers(within(now.finished, max(self._oldest(block), self.memory.sink), window))
        found = list(self.router(block, tuple(candidates), self.count)) if candidates else []
        if len(found) > self.count or not set(found) <= set(candidates):
            raise PlanError(
                f"the router of memory.Routed chose {found} for block {block.start}..{block.stop - 1}: got "
                f"{len(found)} frames, expected at most {self.count} of {candidates}, which are there"
            )
        earlier = [own for own in self.chosen if self._oldest(block) <= own[0] < block.start]
        return replace(self, chosen=(*earlier, (block.start, frames_of(found))))

    def _window(self, block: range) -> int:
        """The first frame of the window of a block."""
        return min(block.stop - self.memory.size, block.start)

    def _oldest(self, block: range) -> int:
        """The first frame that stays for a block."""
        return 0 if self.history is None else max(0, self._window(block) - self.history)
