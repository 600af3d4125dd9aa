# SPDX-License-Identifier: Apache-2.0
"""The rules that every plan must keep.

1. Ticks are numbered 0, 1, 2, …; each moves at least one frame, and no frame twice; frames ascend.
2. Every generated frame takes the levels 0, 1, … of its track once each, in order; given frames never move.
3. The frames of a block that are not given move together.
4. No frame is ever noisier than a later one, by the share of its steps that is left (unless the rule declares
   itself free of this: `ordered=False`).
5. When the plan ends, every frame is finished.
6. What the plan says about itself (`level`, `now`, `newest`, `oldest_unfinished`, `max_live`) is what its
   ticks do.
"""

from __future__ import annotations

from ardiff_engine.errors import PlanError
from ardiff_engine.plan.now import frames_of
from ardiff_engine.plan.tick import Tick
from ardiff_engine.plan.walk import Walk


def verify(plan: Walk, num_ticks: int | None = None) -> None:
    """Replay a plan and raise PlanError at the first broken rule.

    num_ticks: look at the first ticks only; needed for an endless plan.
    """
    rows, columns = plan.shape(num_ticks)
    replay = _Replay(plan, columns)
    for n in range(rows):
        tick = plan.tick(n)
        replay.check_levels(n)
        replay.move(n, tick)
    if rows == plan.num_ticks:
        replay.check_end(rows)


class _Replay:
    """The state of a stream while its plan is followed cell by cell."""

    def __init__(self, plan: Walk, columns: int) -> None:
        self.plan = plan
        self.steps = [plan.steps(frame) for frame in range(columns)]
        self.levels = [self.steps[frame] if frame < plan.prefix else 0 for frame in range(columns)]
        for frame in range(columns):
            block = plan.block(frame)
            if frame not in block or any(plan.block(other) != block for other in block):
                raise PlanError(f"frame {frame} is in block {block}, which not all of its frames are in")

    def move(self, n: int, tick: Tick) -> None:
        self._check_form(n, tick)
        started = {f for f, level in enumerate(self.levels) if level} | set(tick.frames)
        self._check_now(n, started)
        together = {*tick.frames, *range(self.plan.prefix)}
        for frame, level in zip(tick.frames, tick.levels, strict=True):
            self._move(n, frame, level)
            apart = [other for other in self.plan.block(frame) if other not in together]
            if apart:
                raise PlanError(f"tick {n} moves frame {frame} without frame {apart[0]} of its block")
        if self.plan.ordered:
            self._check_order(n, tick)

    def _check_form(self, n: int, tick: Tick) -> None:
        if tick.index != n:
            raise PlanError(f"tick {n} is numbered {tick.index}: number the ticks from 0 without gaps")
        if not tick.frames:
            raise PlanError(f"tick {n} moves nothing: drop it")
        if any(a >= b for a, b in zip(tick.frames, tick.frames[1:], strict=False)):
            raise PlanError(f"tick {n} lists frames {tick.frames}, not in ascending order, each once")

    def _move(self, n: int, frame: int, level: int) -> None:
        own = self.levels[frame]
        if frame < self.plan.prefix:
            raise PlanError(f"tick {n} moves the given frame {frame}: given frames are finished")
        if own == self.steps[frame]:
            raise PlanError(f"tick {n} moves frame {frame}, which is finished after {own} steps")
        if level != own:
            raise PlanError(f"tick {n} moves frame {frame} from level {level}, and it is at level {own}")
        self.levels[frame] += 1

    def _check_order(self, n: int, tick: Tick) -> None:
        for frame in tick.frames:
            if frame == 0:
                continue
            before, own = (self.levels[f] / self.steps[f] for f in (frame - 1, frame))
            if own > before:
                raise PlanError(
                    f"tick {n} leaves frame {frame - 1} noisier than frame {frame}: advance it first, or "
                    "declare the plan ordered=False"
                )

    def check_levels(self, n: int) -> None:
        """Compare what the plan says about the levels before tick n with the replay."""
        plan = self.plan
        own = [plan.level(frame, n) for frame in range(len(self.levels))]
        if own != self.levels:
            raise PlanError(f"tick {n} starts from levels {self.levels}, and the plan says {own}")
        unfinished = (f for f, level in enumerate(self.levels) if level < self.steps[f])
        oldest = next(unfinished, None)
        if oldest is not None and plan.oldest_unfinished(n) != oldest:
            raise PlanError(
                f"tick {n}: the oldest unfinished frame is {oldest}, and the plan says "
                f"{plan.oldest_unfinished(n)}"
            )

    def _check_now(self, n: int, started: set[int]) -> None:
        """Compare what the plan says about the frames during tick n with the replay."""
        plan = self.plan
        finished = {f for f, level in enumerate(self.levels) if level == self.steps[f]}
        live = started - finished
        expected = (frames_of(started), frames_of(live), frames_of(finished))
        now = plan.now(n)
        if (now.started, now.unfinished, now.finished) != expected:
            raise PlanError(f"tick {n}: the plan says {now}, and its frames are {expected}")
        if plan.newest(n) != max(started):
            raise PlanError(f"tick {n}: the newest frame is {max(started)}, the plan says {plan.newest(n)}")
        if max(live) + 1 - min(live) > plan.max_live:
            raise PlanError(f"tick {n} has frames {sorted(live)} in flight, and max_live is {plan.max_live}")

    def check_end(self, rows: int) -> None:
        """Every frame must be finished."""
        for frame, level in enumerate(self.levels):
            if level != self.steps[frame]:
                raise PlanError(f"the plan ends after {rows} ticks with frame {frame} unfinished: add moves")
