# SPDX-License-Identifier: Apache-2.0
"""The AD scheduler of AR-Diffusion (arXiv 2503.07418) in closed form.

Generated frame g (counted after the given ones) has finished clip(n − g·s, 0, S) steps after n ticks: it is
updated in ticks g·s … g·s + S − 1. With s >= 1 it is committed in tick g·s + S, where frame g + 1 is still
being updated; the last frame never is. s = 0 denoises all frames together, s = S one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ardiff_engine.errors import PlanError, explain
from ardiff_engine.plan.plan import Plan
from ardiff_engine.plan.sizes import check_frame, check_sizes, check_tick, check_window_size, whole
from ardiff_engine.plan.tick import Kind, Tick


@dataclass(frozen=True, slots=True)
class LagPlan(Plan):
    """Each frame starts `lag` ticks after the one before. All answers are closed forms."""

    num_frames: int | None
    num_steps: int
    lag: int
    prefix: int = 0
    ordered: bool = True

    def __post_init__(self) -> None:
        for name in ("num_frames", "num_steps", "lag", "prefix"):
            if name != "num_frames" or self.num_frames is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name)))
        check_sizes(self.num_frames, self.num_steps, self.prefix)
        if not 0 <= self.lag <= self.num_steps:
            raise PlanError(
                explain(
                    "lag out of range",
                    got=self.lag,
                    expected=f"0..{self.num_steps} (num_steps)",
                    fix="0 denoises all frames together, num_steps one after the other.",
                )
            )
        if self.num_frames is None and self.lag == 0:
            raise PlanError(
                explain(
                    "an endless video cannot denoise all its frames together",
                    got="num_frames=None with lag=0",
                    expected="lag >= 1",
                    fix="Raise the lag or give num_frames.",
                )
            )

    @property
    def num_ticks(self) -> int | None:
        generated = self._generated
        return None if generated is None else self.num_steps + (generated - 1) * self.lag

    @property
    def max_live(self) -> int:
        generated, lag = self._generated, self.lag
        together = -(-self.num_steps // lag) if lag else generated
        return min(x for x in (together, generated) if x is not None)

    @property
    def rule(self) -> str:
        return f"lag {self.lag}"

    def tick(self, n: int) -> Tick:
        n = check_tick(n, self.num_ticks)
        first, last = self.oldest_unfinished(n), self.newest(n)
        committed = self._committed(n)
        updated = range(first, last + 1)
        # These frames have started and not finished, so that no level is out of 0..S.
        highest, count = n - (first - self.prefix) * self.lag, len(updated)
        levels = range(highest, highest - count * self.lag, -self.lag) if self.lag else (highest,) * count
        return Tick(
            index=n,
            frames=(*committed, *updated),
            levels=(*(self.num_steps,) * len(committed), *levels),
            kinds=(*(Kind.COMMIT,) * len(committed), *(Kind.UPDATE,) * len(updated)),
        )

    def level(self, frame: int, n: int) -> int:
        return self._level(check_frame(frame, self.num_frames), whole("tick", n))

    def _level(self, frame: int, n: int) -> int:
        if frame < self.prefix:
            return self.num_steps
        return min(max(n - (frame - self.prefix) * self.lag, 0), self.num_steps)

    def levels(self, num_ticks: int | None = None) -> npt.NDArray[np.int64]:
        rows, columns = self.shape(num_ticks)
        done = np.arange(1, rows + 1)[:, None]
        start = (np.arange(columns) - self.prefix) * self.lag
        levels = np.clip(done - start, 0, self.num_steps)
        levels[:, : self.prefix] = self.num_steps
        return levels

    def newest(self, n: int) -> int:
        if n < 0:
            return self.prefix - 1
        if self.num_frames is None:
            return self.prefix + n // self.lag
        return min(self.prefix + n // self.lag, self.num_frames - 1) if self.lag else self.num_frames - 1

    def oldest_unfinished(self, n: int) -> int:
        if n < self.num_steps:
            return self.prefix
        if self.num_frames is None:
            return self.prefix + (n - self.num_steps) // self.lag + 1
        if not self.lag:
            return self.num_frames
        return min(self.prefix + (n - self.num_steps) // self.lag + 1, self.num_frames)

    def steady_until(self, n: int) -> int:
        newest, oldest = self.newest(n), self.oldest_unfinished(n)
        ends = [(oldest - self.prefix) * self.lag + self.num_steps]
        if self.num_frames is None or newest < self.num_frames - 1:
            ends.append((newest + 1 - self.prefix) * self.lag)
        return max(n + 1, min(ends))

    def check_window(self, window: int, *, keep_given: bool = True) -> None:
        """`Plan.check_window` in closed form.

        min(⌈S / lag⌉, G) frames (`max_live`) are in flight when the first of the G generated frames takes its
        last step; with given frames, the window needs room for one of them besides.
        """
        window = check_window_size(window)
        beside = int(keep_given and self.prefix > 0)
        if window >= self.max_live + beside:
            return
        lost = "frames would leave it unfinished"
        if window == self.max_live:
            lost = "all given frames would leave it before the first new one is finished"
        room, advice = window - beside, f"a window of {self.max_live + beside} or more"
        if room > 0:
            advice = f"a lag of {-(-self.num_steps // room)} or more, or {advice}"
        raise PlanError(
            explain(
                f"window too short: {lost}",
                got=f"a window of {window} frames with lag {self.lag}, {self.num_steps} steps and "
                f"{self.prefix} given frames",
                expected=f"room for {self.max_live} frames in flight" + " and a given one" * beside,
                fix=f"Use {advice}.",
            )
        )

    @property
    def _generated(self) -> int | None:
        return None if self.num_frames is None else self.num_frames - self.prefix

    def _committed(self, n: int) -> range:
        if n == 0:
            return range(self.prefix)
        since = n - self.num_steps
        if self.lag == 0 or since < 0 or since % self.lag:
            return range(0)
        frame = self.prefix + since // self.lag
        return range(frame, frame + 1)


def lag(num_frames: int | None, num_steps: int, lag: int, prefix: int = 0) -> LagPlan:
    """AR-Diffusion's AD scheduler: after n ticks frame f is at level clip(n − (f − prefix)·lag, 0, S).

    Args:
        num_frames: frames of the video, prefix included; None for an endless video (needs lag >= 1).
        num_steps: solver steps of each frame.
        lag: timestep difference s between neighbours, 0..num_steps.
        prefix: frames that are given; committed in the first tick, never updated.

    Raises PlanError for sizes out of range.
    """
    return LagPlan(num_frames, num_steps, lag, prefix)


def synchronous(num_frames: int, num_steps: int, prefix: int = 0) -> LagPlan:
    """All frames at the same level: `lag` 0."""
    return LagPlan(num_frames, num_steps, 0, prefix)


def autoregressive(num_frames: int | None, num_steps: int, prefix: int = 0) -> LagPlan:
    """One frame after the other: `lag` = num_steps."""
    return LagPlan(num_frames, num_steps, num_steps, prefix)
