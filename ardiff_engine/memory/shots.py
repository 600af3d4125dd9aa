# SPDX-License-Identifier: Apache-2.0
"""Scenes of one video: what a cut leaves visible, and where the new scene stands (LongLive 2.0 and
Infinity-RoPE). They are named by their first frames, which are known when the video starts."""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.policy import StoresClean
from ardiff_engine.memory.positions import Placed, Positions, place
from ardiff_engine.memory.view import Fed, View, union, view_of, within
from ardiff_engine.memory.window import Window
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Frames, Now, Plan


@dataclass(frozen=True, slots=True)
class Shots(StoresClean):
    """window: what is seen within a scene. starts: first frames of the scenes after the first one.

    pin: the first `pin` frames of the last scene stay visible, beside the sink and as a part of the window
        (LongLive 2.0). The scene before it keeps its pin until the first block of the new one is finished.
    offset: every scene stands that many frames further on than the one before.
    carried: frames of the scene before that stay visible besides the sink; None: all of the window
        (Infinity-RoPE's flush carries 2).
    late: the first block of a scene is made in sight of the one before, and stored without it (LongLive 2.0's
        clean re-cache).
    positions: as in `Placed`; None: at the numbers of the frames, and the offset.
    hard: those of the starts whose first block stands at `jump` while it is made (Infinity-RoPE's cut).
    """

    window: Window
    starts: tuple[int, ...] = ()
    pin: int = 0
    offset: int = 0
    carried: int | None = None
    late: bool = False
    positions: Positions | None = None
    hard: tuple[int, ...] = ()
    jump: int = 45

    def __post_init__(self) -> None:
        starts = tuple(self.starts)
        if not isinstance(self.window, Window) or self.window.joint or self.window.stored:
            raise ConfigError(
                f"memory.Shots({self.window!r}): use a Window, not joint, that stores as it moves"
            )
        if any(start < 1 for start in starts) or list(starts) != sorted(set(starts)):
            raise ConfigError(f"memory.Shots starts={starts}: give rising frames, the first at least 1")
        if not 0 <= self.pin <= self.window.size:
            raise ConfigError(f"memory.Shots pin={self.pin}: more than the window of {self.window.size}")
        if not set(self.hard) <= set(starts):
            raise ConfigError(f"memory.Shots hard={self.hard}: some of the starts {starts}")
        object.__setattr__(self, "starts", starts)

    @property
    def chunk(self) -> int:
        return min(self.window.chunk, 1) if self._moves else self.window.chunk

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        self.window.check(plan, spec)
        if self._moves:
            Placed(self.window, "window").check(plan, spec)
        for start in self.starts:
            if (plan.num_frames is None or start < plan.num_frames) and plan.block(start).start != start:
                raise ConfigError(
                    f"memory.Shots: a scene starts at frame {start}, within {plan.block(start)}"
                )

    def most_frames(self, plan: Plan) -> int:
        frames = self.window.most_frames(plan) + self.pin
        frames = frames if plan.num_frames is None else min(frames, plan.num_frames)
        return 2 * frames if self._moves else frames

    def view(self, fed: Fed, now: Now) -> View:
        block = fed.block
        begun = block.start + (fed.stores or not self.late)
        frames = self._seen(block, within(now.started, 0, block.stop), begun)
        if self.positions is not None:
            view = place(view_of(frames), self.positions)
        else:
            view = self._offset(frames)
        return self._jumped(view, block) if block.start in self.hard else view

    def kept(self, oldest: range, now: Now) -> Frames:
        recent = within(now.started, oldest.stop - self.window.size, now.newest + 1)
        return union(self._seen(oldest, now.started, oldest.start + (not self.late)), recent)

    def stores(self, fed: Fed) -> bool:
        return self.window.stores(fed)

    @property
    def _moves(self) -> bool:
        """Whether a frame is ever seen elsewhere than where its K/V were written."""
        return self.positions is not None or bool(self.hard)

    def _seen(self, block: range, frames: Frames, begun: int) -> Frames:
        """begun: what scenes from before this frame have carried with them is all that is left."""
        sink = within(frames, 0, self.window.sink)
        first = min(block.stop - self.window.size, block.start)
        pins = [start for start in self.starts if start < block.start]
        pinned: Frames = ()
        if self.pin and pins and pins[-1] < first:
            pinned = within(frames, pins[-1], pins[-1] + self.pin)
            first = min(first + self.pin, block.start)
        if self.carried is not None:
            scenes = [start for start in self.starts if start < begun]
            first = max(first, scenes[-1] - self.carried) if scenes else first
        return union(sink, pinned, within(frames, first, frames[-1].stop))

    def _offset(self, frames: Frames) -> View:
        """A run for each scene that is seen."""
        bounds = (0, *self.starts, frames[-1].stop)
        scenes = zip(bounds, bounds[1:], strict=False)
        runs = [view_of(within(frames, *span), shift=i * self.offset) for i, span in enumerate(scenes)]
        return tuple([run for scene in runs for run in scene])

    def _jumped(self, view: View, block: range) -> View:
        *before, last = view
        earlier = [last._replace(stop=block.start)] if last.first < block.start else []
        own = last._replace(first=block.start, shift=self.jump - block.start)
        return (*before, *earlier, own)
