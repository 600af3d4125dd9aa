# SPDX-License-Identifier: Apache-2.0
"""Walk: what a plan answers, tick by tick. `Plan` adds its checks and its picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ardiff_engine.errors import PlanError, explain
from ardiff_engine.plan.now import Now, frames_of
from ardiff_engine.plan.sizes import check_window_size
from ardiff_engine.plan.tick import Cycle, Tick

if TYPE_CHECKING:
    from ardiff_engine.diffusion.solvers import Solver


class Walk(ABC):
    """The ticks of one stream. A rule says what `tick(n)` is and where each frame stands; the rest follows.

    A frame at level k has finished k of the steps of its track: 0 is noise, `steps(frame)` is finished. The
    frames of a block share a level. Frames are numbered over the whole video; the first `prefix` of them are
    given: finished before tick 0.

    Attributes:
        num_frames: frames of the video, prefix included; None for an endless one.
        num_steps: steps of the longest track.
        prefix: number of given frames.
        ordered: whether the rule promises that no frame is ever noisier than a later one.
    """

    __slots__ = ()

    num_frames: int | None
    num_steps: int
    prefix: int
    ordered: bool

    @property
    @abstractmethod
    def num_ticks(self) -> int | None:
        """How many ticks there are; None for an endless plan."""

    @property
    @abstractmethod
    def max_live(self) -> int:
        """The most frames that are in flight at the same time, with those between them that are not."""

    @abstractmethod
    def tick(self, n: int) -> Tick:
        """Tick n, from 0, in any order of asking. PlanError outside the plan."""

    @abstractmethod
    def level(self, frame: int, n: int) -> int:
        """Steps that a frame has finished before tick n (after the last tick for n = num_ticks)."""

    @abstractmethod
    def newest(self, n: int) -> int:
        """The highest frame that has been started by tick n, inclusive; given frames count as started."""

    @abstractmethod
    def oldest_unfinished(self, n: int) -> int:
        """The lowest frame that is not finished before tick n; num_frames when all are."""

    def block(self, frame: int) -> range:
        """The frames that share a level with this one and see each other."""
        return range(frame, frame + 1)

    def blocks_of(self, frames: Iterable[int]) -> Iterator[range]:
        """The blocks that frames, in ascending order, are in."""
        block = range(0)
        for frame in frames:
            if frame not in block:
                block = self.block(frame)
                yield block

    @property
    def longest_block(self) -> int:
        """Frames of the longest block."""
        return 1

    def track(self, frame: int) -> int:
        """Which list of steps the frame follows."""
        return 0

    def steps(self, frame: int) -> int:
        """Steps of the frame's track."""
        return self.num_steps

    def now(self, n: int) -> Now:
        """Where the frames stand before tick n; those that it starts have started."""
        newest = self.newest(n)
        finished = [f for f in range(newest + 1) if self.level(f, n) == self.steps(f)]
        starting = self.tick(n).frames if self.num_ticks is None or n < self.num_ticks else ()
        started = {f for f in range(newest + 1) if self.level(f, n) > 0} | set(starting) | set(finished)
        return Now(frames_of(started), frames_of(started - set(finished)), frames_of(finished))

    def all_move(self, n: int) -> bool:
        """Whether tick n moves every frame that is in flight; also true after the last tick."""
        end = self.num_ticks
        return end is not None and n >= end or sum(map(len, self.now(n).unfinished)) == len(self.tick(n))

    def steady_until(self, n: int) -> int:
        """A tick m > n such that ticks n .. m − 1 update the same frames, and none of them starts another.

        Every level then rises by one from tick to tick. The larger m is, the less there is to plan; n + 1 is
        always true.
        """
        return n + 1

    def given_chunks(self, most: int, first: int = 0) -> list[range]:
        """Given frames from `first` on, to be stored before the first tick: whole blocks, of at most that
        many frames or one alone."""
        chunks: list[range] = []
        frame = first
        while most and frame < self.prefix:
            block = self.block(frame)
            if block.stop > self.prefix:  # its given frames are fed beside the others
                break
            if chunks and block.stop - chunks[-1].start <= most:
                chunks[-1] = range(chunks[-1].start, block.stop)
            else:
                chunks.append(block)
            frame = block.stop
        return chunks

    def cycle(self, n: int) -> Cycle | None:
        """How ticks repeat from tick n on; None where they do not, or the rule does not say."""
        return None

    def ticks(self, start: int = 0) -> Iterator[Tick]:
        """All ticks in order from tick `start`; endless for an endless plan."""
        end = self.num_ticks
        numbers = count(start) if end is None else iter(range(start, end))
        return (self.tick(n) for n in numbers)

    def levels(self, num_ticks: int | None = None) -> npt.NDArray[np.int64]:
        """int64 [ticks, frames]: steps finished after each tick; row n − 1 is the official iteration n.

        num_ticks: how many ticks to show (see `shape`); needed for an endless plan.
        """
        rows, columns = self.shape(num_ticks)
        return np.array(
            [[self.level(frame, n + 1) for frame in range(columns)] for n in range(rows)], dtype=np.int64
        ).reshape(rows, columns)

    def updates(self, num_ticks: int | None = None) -> npt.NDArray[np.bool_]:
        """bool [ticks, frames]: which frames the solver advances in each tick."""
        rows, columns = self.shape(num_ticks)
        marks = np.zeros((rows, columns), dtype=np.bool_)
        for n in range(rows):
            marks[n, list(self.tick(n).frames)] = True
        return marks

    def timesteps(
        self, solver: Solver | Sequence[Solver], num_ticks: int | None = None
    ) -> npt.NDArray[np.float64]:
        """float64 [ticks, frames]: the timestep at which each frame stands during each tick, fed or not.

        solver: of all frames, or of each track. Frames that have not started are at its `waiting_timestep`,
        finished ones at CLEAN.
        """
        tracks = solver if isinstance(solver, Sequence) else [solver]
        updates = self.updates(num_ticks)
        before = self.levels(num_ticks) - updates
        timesteps = np.empty(before.shape)
        for frame in range(before.shape[1]):
            track = self.track(frame)
            if track >= len(tracks) or tracks[track].num_steps != self.steps(frame):
                raise PlanError(
                    f"frame {frame} takes {self.steps(frame)} steps on track {track}, and the solvers take "
                    f"{[own.num_steps for own in tracks]}: build plan and solvers with the same numbers"
                )
            own = tracks[track]
            waiting = (before[:, frame] == 0) & ~updates[:, frame]
            known = own.timesteps.numpy()[before[:, frame]]
            timesteps[:, frame] = np.where(waiting, own.waiting_timestep, known)
        return timesteps

    @property
    def num_updates(self) -> int:
        """Cells that the solver advances over the whole plan. PlanError for an endless plan."""
        return sum(len(self.tick(n)) for n in range(self.shape(None)[0]))

    @property
    def rule(self) -> str:
        """The rule that made the plan, in a few words."""
        return "explicit"

    @property
    def summary(self) -> str:
        """Sizes and rule of the plan, for titles and logs."""
        frames = "endless" if self.num_frames is None else f"{self.num_frames} frames"
        given = f" ({self.prefix} given)" if self.prefix else ""
        return f"{frames}{given} \N{MIDDLE DOT} {self.num_steps} steps \N{MIDDLE DOT} {self.rule}"

    def window_start(self, n: int, window: int) -> int:
        """First frame of a sliding window at tick n: max(0, newest(n) + 1 − window), the official rule."""
        return max(0, self.newest(n) + 1 - window)

    def check_window(self, window: int, *, keep_given: bool = True) -> None:
        """Raise PlanError if a window of that many frames would drop what is still needed.

        That is a frame that is not finished; and, where frames are given, the last given frame before the
        first generated one is finished: the video would then not continue the given one.

        keep_given: False leaves out the given frames, for a memory that shows them otherwise: by sinks, or by
            a window that moves with each frame instead of with the newest.
        """
        window = check_window_size(window)
        needed = 1
        for n in range(self.shape(None)[0]):
            oldest = self.oldest_unfinished(n)
            first = keep_given and 0 < self.prefix == oldest
            needed = max(needed, self.newest(n) + 1 - oldest + first)
        if window < needed:
            raise PlanError(
                explain(
                    "window too short: frames would leave it unfinished, or all given frames too early",
                    got=f"a window of {window} frames",
                    expected=f"at least {needed}",
                    fix=f"Use a window of {needed} or more.",
                )
            )

    def shape(self, num_ticks: int | None = None) -> tuple[int, int]:
        """(ticks, frames) of the plan, or of its first `num_ticks` ticks; PlanError when there are fewer.

        In an endless plan the frames are those that have been started by then.
        """
        limit = self.num_ticks
        rows = limit if num_ticks is None else num_ticks
        if rows is None:
            raise PlanError(
                explain(
                    "an endless plan has no last tick",
                    got="num_ticks=None",
                    expected="a number of ticks",
                    fix="Say how many ticks to look at: num_ticks=200.",
                )
            )
        if rows < 0 or (limit is not None and rows > limit):
            raise PlanError(
                explain(
                    "bad number of ticks",
                    got=num_ticks,
                    expected="0 or more" if limit is None else f"0..{limit}",
                    fix="Leave num_ticks out to see all of a finite plan.",
                )
            )
        if self.num_frames is not None:
            return rows, self.num_frames
        return rows, self.newest(rows - 1) + 1 if rows else self.prefix
