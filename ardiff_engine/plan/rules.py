# SPDX-License-Identifier: Apache-2.0
"""Rules: what makes the plan of a request, once its length and its steps are known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from ardiff_engine.errors import PlanError, explain
from ardiff_engine.plan.blocks import BlocksRule
from ardiff_engine.plan.cut import Cut
from ardiff_engine.plan.lag import LagRule, WindowRule
from ardiff_engine.plan.parts import PartsRule
from ardiff_engine.plan.plan import Plan
from ardiff_engine.plan.pyramid import PyramidRule
from ardiff_engine.plan.sets import SetsRule
from ardiff_engine.plan.sizes import whole
from ardiff_engine.plan.stage_major import StageMajorRule
from ardiff_engine.plan.tracked import TrackedRule
from ardiff_engine.plan.trapezoid import TrapezoidRule


@runtime_checkable
class Rule(Protocol):
    def plan(self, num_frames: int | None, steps: tuple[int, ...], prefix: int = 0) -> Plan:
        """The plan of a video; PlanError if the rule cannot make it.

        num_frames: prefix included; None: endless. steps: of each track. prefix: frames that are given.
        """


def blocks(size: int, first: int | None = None, lag: int | None = None, given_within: bool = False) -> Rule:
    """Blocks of `size` frames (the first of `first`), one after the other, or `lag` ticks apart.

    One after the other, block b follows track min(b, last), so that tracks may differ in their steps.
    given_within: given frames may end within a block, which then sees them clean (LongLive 2.0's picture).
    """
    cut = Cut(size, first or 0, given_within)
    return BlocksRule(cut) if lag is None else LagRule(lag, cut)


def rolling(levels: int, block: int = 1, first: int | None = None) -> Rule:
    """Rolling Forcing: a window of `levels` blocks that stand at successive levels, filled and drained one
    block at a time. That they see each other is said by the memory (`joint=True`)."""
    return WindowRule(levels, Cut(block, first or 0))


def staged(window: int, block: int = 1, first: int | None = None) -> Rule:
    """MAGI-1: `window` blocks in flight, each S / window steps behind the one before."""
    return WindowRule(window, Cut(block, first or 0))


def stage_major(block: int = 1, first: int | None = None, pipelined: bool = False, ahead: int = 0) -> Rule:
    """HiAR: all blocks take a step before any takes the next; pipelined: one diagonal of them per tick.

    ahead: first blocks of the video that take all of their steps before the others start.
    """
    cut, ahead = Cut(block, first or 0), whole("blocks ahead", ahead)
    return LagRule(1, cut, ahead) if pipelined else StageMajorRule(cut, ahead)


def sets(groups: Iterable[Iterable[int]]) -> Rule:
    """MMPL: groups of frames, one after the other, in any order; each frame of the video in one of them."""
    try:
        each = tuple(tuple(group) for group in groups)
    except TypeError:
        raise PlanError(
            explain("sets", got=repr(groups), expected="groups of frames", fix="sets([[0, 1], [2]]) is one.")
        ) from None
    return SetsRule(tuple(tuple(whole("frame of a set", frame) for frame in group) for group in each))


def pyramid(uncertainty: float, block: int = 1, first: int | None = None) -> Rule:
    """Diffusion Forcing: block g starts ⌊g·uncertainty⌋ ticks after the first one; a real number >= 0."""
    return PyramidRule(uncertainty, Cut(block, first or 0))


def trapezoid(uncertainty: float, behind: int = 0) -> Rule:
    """Diffusion Forcing's plan between two ends: a frame starts ⌊d·uncertainty⌋ ticks after the ends, d its
    distance from the nearer one; behind: added to the distance from the last one."""
    return TrapezoidRule(uncertainty, behind)


def parts(rule: Rule, ends: Iterable[int]) -> Rule:
    """A video made part by part: `rule` for each, with the frames before it given. ends: where they end."""
    return PartsRule(rule, tuple(whole("end of a part", end) for end in ends))


def together(tracks: Iterable[int]) -> Rule:
    """All frames at once, frame f on track tracks[f]: PUSA's timesteps for each frame."""
    return TrackedRule(tuple(whole("track", track) for track in tracks))
