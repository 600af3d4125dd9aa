# SPDX-License-Identifier: Apache-2.0
"""The rules that every plan must keep.

1. Ticks are numbered 0, 1, 2, …; each feeds at least one frame, and no frame twice; frames ascend.
2. Every generated frame takes the levels 0, 1, …, S − 1 once each, in order; given frames are never updated.
3. No frame is ever noisier than a later one (unless the rule declares itself free of this: `ordered=False`).
4. A finished frame is committed once, in the next tick in which a later frame is fed, and in no other.
5. When the plan ends, every frame is finished.
6. What the plan says about itself (`level`, `newest`, `oldest_unfinished`, `max_live`) is what its ticks do.
"""

from __future__ import annotations

from ardiff_engine.errors import PlanError, explain
from ardiff_engine.plan.plan import Plan
from ardiff_engine.plan.tick import Kind, Tick


def verify(plan: Plan, num_ticks: int | None = None) -> None:
    """Replay a plan and raise PlanError at the first broken rule.

    num_ticks: look at the first ticks only; needed for an endless plan.
    """
    rows, columns = plan.shape(num_ticks)
    replay = _Replay(plan, columns)
    for n in range(rows):
        tick = plan.tick(n)
        replay.check_start(n)
        replay.feed(n, tick)
        replay.check_frames(n, tick)
    if rows == plan.num_ticks:
        replay.check_end(rows)


class _Replay:
    """The state of a stream while its plan is followed cell by cell."""

    def __init__(self, plan: Plan, columns: int) -> None:
        self.plan = plan
        self.levels = [plan.num_steps] * plan.prefix + [0] * (columns - plan.prefix)
        self.uncommitted = set(range(plan.prefix))
        self.newest = plan.prefix - 1

    def feed(self, n: int, tick: Tick) -> None:
        self._check_form(n, tick)
        finished_before = set(self.uncommitted)
        for frame, level, kind in zip(tick.frames, tick.levels, tick.kinds, strict=True):
            if kind is Kind.UPDATE:
                self._update(n, frame, level)
            else:
                self._commit(n, frame, level, later_fed=tick.frames[-1] > frame)
        self._check_missing_commits(n, finished_before, tick)
        if self.plan.ordered:
            self._check_order(n, tick)
        self.newest = max((*tick.updates, self.newest))

    def _check_form(self, n: int, tick: Tick) -> None:
        if tick.index != n:
            raise _broken(n, "is numbered wrongly", tick.index, n, "Number the ticks from 0 without gaps.")
        if not tick.frames:
            raise _broken(n, "feeds nothing", "no cells", "at least one cell", "Drop the tick.")
        if any(a >= b for a, b in zip(tick.frames, tick.frames[1:], strict=False)):
            raise _broken(
                n,
                "does not list its frames in ascending order, each once",
                tick.frames,
                "ascending frames",
                "Sort them.",
            )

    def _update(self, n: int, frame: int, level: int) -> None:
        own, steps = self.levels[frame], self.plan.num_steps
        if frame < self.plan.prefix:
            raise _broken(
                n,
                f"updates the given frame {frame}",
                "update",
                "commit or nothing",
                "Given frames are finished.",
            )
        if own == steps:
            raise _broken(
                n,
                f"updates frame {frame}, which is finished",
                f"level {level}",
                f"{steps} updates in all",
                "Drop the cell.",
            )
        if level != own:
            raise _broken(
                n,
                f"feeds frame {frame} at a level where it is not",
                f"level {level}",
                f"level {own}",
                "A frame takes every level once, in order.",
            )
        self.levels[frame] += 1
        if self.levels[frame] == steps:
            self.uncommitted.add(frame)

    def _commit(self, n: int, frame: int, level: int, later_fed: bool) -> None:
        own, steps = self.levels[frame], self.plan.num_steps
        if own != steps:
            raise _broken(
                n,
                f"commits frame {frame}, which is not finished",
                f"level {own}",
                f"level {steps}",
                "Commit after the last update.",
            )
        if level != steps:
            raise _broken(
                n,
                f"commits frame {frame} at the wrong level",
                f"level {level}",
                f"level {steps}",
                "Commits are clean.",
            )
        if frame not in self.uncommitted:
            raise _broken(n, f"commits frame {frame} again", "a second commit", "one", "Drop the cell.")
        if not later_fed:
            raise _broken(
                n,
                f"commits frame {frame} for nobody",
                "no later frame in the tick",
                "a later frame that can see it",
                "Commit in the next tick in which a later frame is fed.",
            )
        self.uncommitted.discard(frame)

    def _check_missing_commits(self, n: int, finished_before: set[int], tick: Tick) -> None:
        for frame in sorted(finished_before & self.uncommitted):
            if frame < tick.frames[-1]:
                raise _broken(
                    n,
                    f"does not commit frame {frame}, which is finished",
                    f"frame {tick.frames[-1]} fed without it",
                    f"a commit of frame {frame}",
                    "Commit in the next tick in which a later frame is fed.",
                )

    def _check_order(self, n: int, tick: Tick) -> None:
        for frame in tick.updates:
            if frame > 0 and self.levels[frame] > self.levels[frame - 1]:
                raise _broken(
                    n,
                    f"leaves frame {frame - 1} noisier than frame {frame}",
                    f"levels {self.levels[frame - 1]} and {self.levels[frame]}",
                    "levels that do not increase along the video",
                    "Advance the earlier frame first, or declare the plan ordered=False.",
                )

    def check_start(self, n: int) -> None:
        """Compare what the plan says about the state before tick n with the replay."""
        plan, steps = self.plan, self.plan.num_steps
        own = [plan.level(frame, n) for frame in range(len(self.levels))]
        if own != self.levels:
            raise _broken(
                n, "starts from levels other than the plan says", own, self.levels, "Correct level()."
            )
        unfinished = (frame for frame, level in enumerate(self.levels) if level < steps)
        oldest = next(unfinished, None)
        if oldest is not None and plan.oldest_unfinished(n) != oldest:
            raise _broken(
                n,
                "starts with another oldest unfinished frame than the plan says",
                plan.oldest_unfinished(n),
                oldest,
                "Correct oldest_unfinished().",
            )

    def check_frames(self, n: int, tick: Tick) -> None:
        """Compare what the plan says about the newest and the live frames of tick n with the replay."""
        plan, steps = self.plan, self.plan.num_steps
        if plan.newest(n) != self.newest:
            raise _broken(
                n,
                "has another newest frame than the plan says",
                plan.newest(n),
                self.newest,
                "Correct newest().",
            )
        running = {frame for frame, level in enumerate(self.levels) if 0 < level < steps}
        live = len(running | set(tick.updates))
        if live > plan.max_live:
            raise _broken(
                n,
                "has more live frames than the plan says",
                live,
                f"at most {plan.max_live}",
                "Correct max_live.",
            )

    def check_end(self, rows: int) -> None:
        """Every frame must be finished."""
        for frame, level in enumerate(self.levels):
            if level != self.plan.num_steps:
                raise PlanError(
                    explain(
                        f"the plan ends after {rows} ticks with frame {frame} unfinished",
                        got=f"level {level}",
                        expected=f"level {self.plan.num_steps}",
                        fix="Add the missing updates.",
                    )
                )


def _broken(n: int, what: str, got: object, expected: object, fix: str) -> PlanError:
    return PlanError(explain(f"tick {n} {what}", got=got, expected=expected, fix=fix))
