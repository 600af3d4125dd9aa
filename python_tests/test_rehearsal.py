# SPDX-License-Identifier: Apache-2.0
"""No memory of this package shows what is not there, or keeps more than it promised, under any plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ar_diffusion import tiny
from test_plan_rules import plans

from ardiff_engine import plan
from ardiff_engine.engine import rehearsal
from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.engine.rehearsal import rehearse
from ardiff_engine.errors import ConfigError, PlanError
from ardiff_engine.memory import (
    Full,
    MemoryPolicy,
    PerLayer,
    PerLevel,
    Placed,
    Ranges,
    RecomputedWindow,
    Window,
)
from ardiff_engine.plan import Plan

SPEC = replace(tiny("separate_norm", "temporal_causal", "rope").spec, longest=None)


@st.composite
def memories(draw: st.DrawFn) -> MemoryPolicy:
    size, sink = draw(st.integers(1, 12)), draw(st.integers(0, 4))
    window = Window(size, sink, joint=draw(st.booleans()), clean=draw(st.booleans()))
    ranges = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    plain = [window, Full(), Full(joint=True)]
    context = draw(st.sampled_from(["next", "same"]))
    levels = [PerLevel(memory, context) for memory in plain if not memory.joint]
    given = draw(st.sampled_from([*plain, *levels, RecomputedWindow(size), Ranges(ranges, size)]))
    if draw(st.integers(0, 9)) == 0:
        return PerLayer((Window(size, sink), Window(size + 1)), (0, 1, 0))
    return Placed(given, draw(st.sampled_from(["window", "anchored"]))) if draw(st.booleans()) else given


def served(ours: Plan, memory: MemoryPolicy) -> bool:
    try:
        memory.check(ours, SPEC)
    except ConfigError:
        return False
    if isinstance(memory, Placed):
        try:
            rehearse(ours, memory, SPEC)
        except PlanError as error:
            assert "two places" in str(error)
            return False
    return True


@settings(max_examples=300, deadline=None)
@given(plans(), memories())
def test_what_is_shown_is_there(ours: Plan, memory: MemoryPolicy) -> None:
    if served(ours, memory):
        rehearse(ours, memory, SPEC)


@settings(max_examples=150, deadline=None)
@given(plans(), memories(), st.data())
def test_also_after_edits(ours: Plan, memory: MemoryPolicy, data: st.DataObject) -> None:
    if not served(ours, memory):
        return

    class Edited(Feeder):
        """Conditions change on the way."""

        def next(self):  # noqa: ANN202
            change = data.draw(st.integers(0, 12))
            if change == 0:
                self.forget()
            elif change == 1:
                self.recommit()
            return super().next()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rehearsal, "Feeder", Edited)
        rehearse(ours, memory, SPEC)


def test_frames_that_wait_for_their_turn_stay_where_they_are() -> None:
    """Blocks take turns: one is not fed when the past is forgotten, and was written at its place."""
    ours = plan.stage_major(2, first=1, ahead=1).plan(5, (5,))
    feeder = Feeder(ours, Window(4), SPEC)
    for _ in range(6):
        feeder.advance(feeder.next())
    assert not ours.all_move(feeder.tick) and feeder.forget() == 1
    feed = feeder.next()
    assert {run.shift for view in feed.roster.views for run in view} == {0}
    assert feed.roster.positions == feed.roster.frames


def test_endless_plans_are_rehearsed_for_a_while() -> None:
    rehearse(plan.blocks(3).plan(None, (4,)), Window(6, sink=3), SPEC)
    rehearse(plan.rolling(4, 2).plan(None, (4,)), Window(8, joint=True), SPEC)
