# SPDX-License-Identifier: Apache-2.0
"""No memory of this package shows what is not there, or keeps more than it promised, under any plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from effort import examples
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
    Recached,
    RecomputedWindow,
    Routed,
    Shots,
    Window,
)
from ardiff_engine.memory.view import agree, contains
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
    given = draw(
        st.sampled_from([*plain, *levels, *of_windows(draw), RecomputedWindow(size), Ranges(ranges, size)])
    )
    placed = draw(st.booleans()) and not given.by_layer
    return Placed(given, draw(st.sampled_from(["window", "anchored"]))) if placed else given


def of_windows(draw: st.DrawFn) -> list[MemoryPolicy]:
    size = draw(st.integers(1, 12))
    window = Window(size, draw(st.integers(0, 4)), clean=draw(st.booleans()), back=draw(st.integers(0, 4)))
    starts = tuple(sorted(draw(st.sets(st.integers(1, 20), max_size=3))))
    carried = draw(st.none() | st.integers(0, 4))
    return [
        window,
        Shots(
            window, starts, pin=draw(st.integers(0, size)), offset=draw(st.integers(0, 8)), carried=carried
        ),
        Recached(window, starts, keeps_sink=draw(st.booleans())),
        Routed(window, 2, history=draw(st.none() | st.integers(2, 6))),
        PerLayer((window, Window(size + 1, clean=window.clean)), (0, 1, 0)),
    ]


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


@settings(max_examples=examples(1500), deadline=None)
@given(plans(), memories())
def test_what_is_shown_is_there(ours: Plan, memory: MemoryPolicy) -> None:
    if served(ours, memory):
        rehearse(ours, memory, SPEC)


@settings(max_examples=examples(1000), deadline=None)
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


@pytest.mark.parametrize("given_frames", [0, 6, 42])
@pytest.mark.parametrize("window", [Window(21), Window(9, sink=3), Window(12, joint=True)], ids=str)
@pytest.mark.parametrize("rule", [plan.blocks(3), plan.blocks(1, lag=2), plan.rolling(4, 3)], ids=str)
def test_a_window_promises_little_more_than_it_holds(rule, window: Window, given_frames: int) -> None:
    ours = rule.plan(None, (4,), given_frames)
    feeder, held, most = Feeder(ours, window, SPEC), set(), 0
    while feeder.tick < 60:
        feed = feeder.next()
        held = {frame for frame in held if contains(feed.roster.kept, frame)}.union(feed.roster.frames)
        most = max(most, len(held))
        feeder.advance(feed)
    assert most <= window.most_frames(ours) <= most + max(ours.longest_block, window.chunk)


def test_endless_plans_are_rehearsed_for_a_while() -> None:
    rehearse(plan.blocks(3).plan(None, (4,)), Window(6, sink=3), SPEC)
    rehearse(plan.rolling(4, 2).plan(None, (4,)), Window(8, joint=True), SPEC)


@pytest.mark.parametrize("tick", range(1, 14))
def test_scenes_that_move_together_keep_their_places_after_a_reset(tick: int) -> None:
    """Frame 3 stands in the third scene and sees frame 2, which moves in the same pass, in the second."""
    memory = Shots(Window(2, sink=3, back=3), (1, 3, 4), pin=2, offset=5, carried=0)
    feeder = Feeder(plan.stage_major(1, pipelined=True, ahead=2).plan(4, (5,)), memory, SPEC)
    while not feeder.done:
        if feeder.tick == tick and not feeder.floor:
            feeder.forget()
        feed = feeder.next()
        assert agree(feed.roster.views)
        feeder.advance(feed)


def test_frames_finished_before_their_elders_stay_where_they_are_after_a_reset() -> None:
    """Were they moved, they would need pages that were never promised."""
    feeder = Feeder(plan.sets([(0, 2, 3), (1, 4, 5)]).plan(6, (4,)), Full(), SPEC)
    for _ in range(5):
        feeder.advance(feeder.next())
    assert feeder.forget() == 1
    roster = feeder.next().roster
    assert roster.positions == roster.frames and {run.shift for view in roster.views for run in view} == {0}


def test_a_block_that_is_stored_alone_does_not_see_frames_that_start_next() -> None:
    """Set (5) is finished before frame 0 starts; both move to other places, so that they need two passes."""
    rehearse(plan.sets([(5,), (0,), (1,), (2, 3), (4,)]).plan(6, (5,)), Placed(Full(), "anchored"), SPEC)
