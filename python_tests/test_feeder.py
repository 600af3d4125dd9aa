# SPDX-License-Identifier: Apache-2.0
"""A feeder keeps rosters while it can; what it feeds is what planning every pass anew would feed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ar_diffusion import tiny

from ardiff_engine.engine.feed import Feed, SteadyRuns
from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.memory import Full, MemoryPolicy, Placed, RecomputedWindow, Window
from ardiff_engine.memory.view import numbers
from ardiff_engine.plan import Plan, blocks, explicit, lag

SPEC = tiny("separate_norm", "temporal_causal", "rope").spec
POLICIES = (
    RecomputedWindow(6),
    Window(3),
    Window(2, sink=2),
    Window(5, sink=1),
    Full(),
    Placed(Window(3), "window"),
    Placed(Window(2, sink=2), "anchored"),
)


def described(feed: Feed) -> dict[str, object]:
    roster = feed.roster
    names = ("frames", "updates", "views", "copies", "positions", "steps", "tracks", "feeds_context")
    return {"levels": feed.levels, **{name: getattr(roster, name) for name in names}}


@st.composite
def plans(draw) -> Plan:
    steps, prefix = draw(st.integers(2, 9)), draw(st.integers(0, 3))
    plan: Plan = lag(24, steps, draw(st.integers(-(-steps // 2), steps)), prefix=prefix)
    if draw(st.booleans()):
        tracks = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
        plan = blocks(1).plan(24, tracks, prefix)
    elif draw(st.booleans()):
        # An explicit plan promises nothing about the passes to come.
        return explicit(plan.ticks(), 24, steps, prefix)
    return plan


@settings(max_examples=examples(300), deadline=None)
@given(plans(), st.sampled_from(POLICIES), st.booleans(), st.data())
def test_kept_rosters_feed_what_a_new_plan_would(
    plan: Plan, policy: MemoryPolicy, cacheable: bool, data: st.DataObject
) -> None:
    if not cacheable:
        policy = RecomputedWindow(6)
    keeps, plans_anew = (Feeder(plan, policy, replace(SPEC, forgets=cacheable)) for _ in range(2))
    while not keeps.done:
        plans_anew._runs = SteadyRuns()
        change = data.draw(st.integers(0, 80))
        for feeder in (keeps, plans_anew):
            if change == 0:
                feeder.forget()
            elif change == 1:
                feeder.renew_context()
            elif change == 2:
                feeder.recommit()
        expected = plans_anew.next()
        # Asked twice, as by an engine that first looks who fits into its budget.
        keeps.next()
        kept = keeps.next()
        assert described(kept) == described(expected)
        # What only the first pass with a roster sees goes with the next one, or with a new plan.
        assert set(numbers(expected.roster.kept)) <= set(numbers(kept.roster.kept))
        keeps.advance(kept)
        plans_anew.advance(expected)
        assert plans_anew.levels.items() <= keeps.levels.items()
        if data.draw(st.integers(0, 9)) == 0:
            keeps = keeps.copy()


def test_the_pass_after_one_that_stores_is_not_planned_anew() -> None:
    feeder = Feeder(lag(None, 8, 4), Window(4), SPEC)
    seen = []
    for _ in range(12):
        feed = feeder.next()
        seen.append((feed.passed, all(feed.roster.updates)))
        feeder.advance(feed)
    # Frame 2 starts in pass 8, where frame 0 is stored; from pass 9 on it is left out.
    assert seen[8:12] == [(0, False), (1, True), (2, True), (3, True)]


WINDOWS = [Window(6), Window(5, sink=2), Window(4, back=2), Window(6, joint=True), Window(4, clean=False)]
ENDLESS = [lag(None, 8, 4), lag(None, 9, 6), blocks(2).plan(None, (3, 2)), blocks(3).plan(None, (4,))]
FINITE = [
    lag(60, 8, 4),
    lag(40, 9, 4, prefix=2, block=2),
    blocks(3, 1).plan(61, (4,)),
    blocks(2).plan(40, (3, 2), 2),
]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("plan", ENDLESS + FINITE)
def test_what_repeats_itself_is_what_would_be_planned(plan: Plan, window: Window) -> None:
    repeats, plans_anew = (Feeder(plan, window, SPEC) for _ in range(2))
    for _ in range(160 if plan.num_ticks is None else plan.num_ticks):
        feed = repeats.next()
        if not feed.passed:
            plans_anew._runs = SteadyRuns()
        expected = plans_anew.next()
        assert described(feed) == described(expected) and feed.roster.kept == expected.roster.kept
        assert feed.passed == expected.passed and repeats.passes_ahead <= plans_anew.passes_ahead
        repeats.advance(feed)
        plans_anew.advance(expected)
        assert repeats.levels == plans_anew.levels


@pytest.mark.parametrize("window", WINDOWS[:3])
@pytest.mark.parametrize("plan", ENDLESS)
def test_what_repeats_itself_is_planned_once(
    plan: Plan, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the window slides, a roster is the one before it, moved on: no view is asked for."""
    feeder, asked = Feeder(plan, window, SPEC), []
    view = Window.view
    monkeypatch.setattr(Window, "view", lambda *of: asked.append(feeder.tick) or view(*of))
    for _ in range(120):
        feeder.advance(feeder.next())
    assert 0 < max(asked) < 80
    asked.clear()
    feeder.renew_context()
    for _ in range(40):
        feeder.advance(feeder.next())
    assert asked[0] == 120 and max(asked) < 150


@pytest.mark.parametrize("before", range(4))
def test_given_frames_that_recommit_forgets_need_not_be_stored(before: int) -> None:
    """A window of two sees the last of seven given frames: chunks before it have nothing left to feed."""
    feeder = Feeder(lag(10, 4, 4, prefix=7), Window(2), SPEC)
    for _ in range(before):
        feeder.advance(feeder.next())
    feeder.recommit()
    fed = []
    while not feeder.done:
        feed = feeder.next()
        fed += feed.roster.frames
        feeder.advance(feed)
    assert min(fed) == 6 and {7, 8, 9} <= set(fed)
