# SPDX-License-Identifier: Apache-2.0
"""LongLive's answer to a new prompt (arXiv 2509.22622): the cache is computed again, in one go, from the last
frames of the video."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.policy import StoresClean
from ardiff_engine.memory.view import Fed, View, union, view_of, within
from ardiff_engine.memory.window import Window
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Frames, Now, Plan


@dataclass(frozen=True, slots=True)
class Recached(StoresClean):
    """window: what is seen. prompts: the first frames of those prompts that are new, each of them of a block;
    `Stream.set_condition(effect="recommit")` adds one.

    When such a block starts, the last `window.size + window.sink` frames are stored anew. They see each
    other, later ones too: the official code builds a causal mask for that pass, and its attention ignores it.
    keeps_sink: the sink stays as it was under the first prompt; else the first of those frames are the sink
        from then on.
    """

    window: Window
    prompts: tuple[int, ...] = ()
    keeps_sink: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.window, Window) or self.window.joint or self.window.stored:
            raise ConfigError(
                f"memory.Recached({self.window!r}): use a Window, not joint, that stores as it moves"
            )
        object.__setattr__(self, "prompts", tuple(sorted(self.prompts)))

    @property
    def reach(self) -> int:
        """Frames that are stored anew."""
        return self.window.size + self.window.sink

    @property
    def chunk(self) -> int:
        return self.window.chunk

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        self.window.check(plan, spec)
        for at in self.prompts:
            over = at <= plan.prefix or (plan.num_frames is not None and at >= plan.num_frames)
            if not (over or plan.block(at).start == at):
                raise ConfigError(f"memory.Recached: frame {at} starts no generated block ({plan.rule})")

    def most_frames(self, plan: Plan) -> int:
        frames = self.window.most_frames(plan) + 2 * self.window.sink
        return frames if plan.num_frames is None else min(frames, plan.num_frames)

    def view(self, fed: Fed, now: Now) -> View:
        """A block before the newest prompt is stored only if that prompt has it stored anew."""
        stop, at = fed.block.stop, self._prompt(fed.block.start)
        new = self._prompt(now.newest)
        if fed.stores and stop <= new:
            stop, at = new, new
        first = min(stop - self.window.size, fed.block.start)
        frames = within(now.started, 0, stop)
        return view_of(union(within(frames, *self._sink(at)), within(frames, first, stop)))

    def kept(self, oldest: range, now: Now) -> Frames:
        sink = within(now.started, *self._sink(self._prompt(oldest.start)))
        return union(sink, within(now.started, oldest.start - self.reach, now.newest + 1))

    def renewed(self, block: range) -> Frames:
        if block.start not in self.prompts:
            return ()
        if block.start <= self.reach:
            return (range(block.start),)
        return (range(block.start - (self.window.size if self.keeps_sink else self.reach), block.start),)

    def prompted(self, frame: int) -> Recached:
        return replace(self, prompts=(*self.prompts, frame))

    def _prompt(self, frame: int) -> int:
        """The new prompt that a frame is made under; 0: the first one."""
        return max([at for at in self.prompts if at <= frame], default=0)

    def _sink(self, at: int) -> tuple[int, int]:
        first = 0 if self.keeps_sink else max(0, at - self.reach)
        return first, first + self.window.sink
