# SPDX-License-Identifier: Apache-2.0
"""The AD scheduler of AR-Diffusion (arXiv 2503.07418) in closed form, over frames or over blocks.

Generated block g (counted after the given ones) has finished clip(n − g·s, 0, S) steps after n ticks: it
moves in ticks g·s … g·s + S − 1. s = 0 denoises all blocks together, s = S one after the other. Rolling
Forcing (s = 1) and MAGI-1 (s = S / window) take the same steps; they differ in what is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.errors import PlanError
from ardiff_engine.plan.cut import Cut
from ardiff_engine.plan.sizes import check_window_size, whole
from ardiff_engine.plan.staircase import Staircase


@dataclass(frozen=True, slots=True)
class LagPlan(Staircase):
    """Each block starts `lag` ticks after the one before. All answers are closed forms.

    ahead: the first blocks of the video take all of their steps, one block after the other, before the next
        ones start.
    """

    num_frames: int | None
    num_steps: int
    lag: int
    prefix: int = 0
    ordered: bool = True
    cut: Cut = Cut()
    ahead: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lag", whole("lag", self.lag))
        self._check()
        if not 0 <= self.lag <= self.num_steps:
            raise PlanError(
                f"lag {self.lag} is out of range 0..{self.num_steps} (num_steps): 0 denoises all frames "
                "together, num_steps one after the other"
            )
        if self.num_frames is None and self.lag == 0:
            raise PlanError(
                "an endless video cannot denoise all its frames together: use a lag of 1 or more, "
                "or give num_frames"
            )

    @property
    def rule(self) -> str:
        rule = f"lag {self.lag}" if self.cut == Cut() else f"lag {self.lag}, {self.cut}"
        return f"{rule}, {self.ahead} ahead" if self.ahead else rule

    def block(self, frame: int) -> range:
        if self.cut.size == self.cut.first == 1:
            return range(frame, frame + 1)
        return self.cut.block(self.cut.number(frame))

    def steps(self, frame: int) -> int:
        return self.num_steps

    def check_window(self, window: int, *, keep_given: bool = True) -> None:
        """`Plan.check_window` in closed form.

        Over frames, min(⌈S / lag⌉, G) of them (`max_live`) are in flight when the first of the G generated
        frames takes its last step; with given frames, the window needs room for one of them besides.
        """
        window = check_window_size(window)
        beside = int(keep_given and self.prefix > 0)
        if window >= self.max_live + beside:
            return
        lost = "frames would leave it unfinished"
        if window == self.max_live:
            lost = "all given frames would leave it before the first new one is finished"
        room, advice = (window - beside) // self.cut.size, f"a window of {self.max_live + beside} or more"
        if room > 0:
            advice = f"a lag of {-(-self.num_steps // room)} or more, or {advice}"
        raise PlanError(
            f"window too short: {lost}. Got a window of {window} frames with lag {self.lag}, "
            f"{self.num_steps} steps and {self.prefix} given frames; it needs room for {self.max_live} "
            f"frames in flight{' and a given one' * beside}. Use {advice}."
        )

    @property
    def _ahead(self) -> int:
        """Generated blocks that run ahead."""
        return max(0, self.ahead - self.cut.number(self.prefix))

    @property
    def _alike_from(self) -> int:
        return self._ahead + 1

    def _start(self, number: int) -> int:
        ahead = min(number, self._ahead)
        return ahead * self.num_steps + (number - ahead) * self.lag

    def _starts_until(self, n: int) -> int:
        left = n - self._ahead * self.num_steps
        if left < 0:
            return n // self.num_steps + 1
        if self.lag:
            return self._ahead + left // self.lag + 1
        count = self._count
        assert count is not None, "endless plans have a lag"
        return count

    def _ends_until(self, n: int) -> int:
        return 0 if n < self.num_steps else self._starts_until(n - self.num_steps)


@dataclass(frozen=True, slots=True)
class LagRule:
    """lag: None starts a block when the one before is finished, which is a lag of all steps."""

    lag: int | None
    cut: Cut = Cut()
    ahead: int = 0

    def plan(self, num_frames: int | None, steps: tuple[int, ...], prefix: int = 0) -> LagPlan:
        if len(steps) != 1:
            raise PlanError(f"a lag moves all blocks over one list of steps, not {len(steps)}")
        lag = steps[0] if self.lag is None else self.lag
        return LagPlan(num_frames, steps[0], lag, prefix, cut=self.cut, ahead=self.ahead)


@dataclass(frozen=True, slots=True)
class WindowRule:
    """`window` blocks in flight at a time, at levels that are equally far apart."""

    window: int
    cut: Cut = Cut()

    def plan(self, num_frames: int | None, steps: tuple[int, ...], prefix: int = 0) -> LagPlan:
        window = whole("window", self.window)
        if window < 1 or len(steps) != 1 or steps[0] % window:
            raise PlanError(f"{window} blocks in flight cannot share {steps} steps: use a divisor of them")
        return LagPlan(num_frames, steps[0], steps[0] // window, prefix, cut=self.cut)


def lag(
    num_frames: int | None,
    num_steps: int,
    lag: int,
    prefix: int = 0,
    block: int = 1,
    first: int | None = None,
) -> LagPlan:
    """AR-Diffusion's AD scheduler: after n ticks frame f is at level clip(n − (f − prefix)·lag, 0, S).

    Args:
        num_frames: frames of the video, prefix included; None for an endless video (needs lag >= 1).
        num_steps: solver steps of each frame.
        lag: timestep difference s between neighbours, 0..num_steps.
        prefix: frames that are given, never updated.
        block: frames that share a level; the lag then is between blocks.
        first: frames of the first block of the video, if it has another size.

    Raises PlanError for sizes out of range, and for a video that is not whole blocks.
    """
    return LagPlan(num_frames, num_steps, lag, prefix, cut=Cut(block, first or 0))


def synchronous(num_frames: int, num_steps: int, prefix: int = 0) -> LagPlan:
    """All frames at the same level: `lag` 0."""
    return LagPlan(num_frames, num_steps, 0, prefix)


def autoregressive(num_frames: int | None, num_steps: int, prefix: int = 0) -> LagPlan:
    """One frame after the other: `lag` = num_steps."""
    return LagPlan(num_frames, num_steps, num_steps, prefix)
