# SPDX-License-Identifier: Apache-2.0
"""Sets of frames as ranges do what sets of numbers do; views of policies show what their rules say."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ardiff_engine.memory import Full, RecomputedWindow, Window
from ardiff_engine.memory.positions import place
from ardiff_engine.memory.view import Fed, Run, contains, forget, frames_in, union, view_of, within, without
from ardiff_engine.plan.now import Frames, Now, frames_of

numbers = st.sets(st.integers(0, 15))


def plain(frames: Frames) -> set[int]:
    return {frame for run in frames for frame in run}


@settings(max_examples=200, deadline=None)
@given(numbers, numbers, st.integers(0, 16), st.integers(0, 16))
def test_ranges_are_sets(a: set[int], b: set[int], first: int, stop: int) -> None:
    one, two = frames_of(a), frames_of(b)
    results = {
        union(one, two): a | b,
        without(one, two): a - b,
        within(one, first, stop): {f for f in a if first <= f < stop},
        frames_in([view_of(one), view_of(two)]): a | b,
    }
    for found, expected in results.items():
        # In the one form that a set has, so that equal sets compare equal.
        assert found == frames_of(expected) and plain(found) == expected
    assert [f for f in range(16) if contains(one, f)] == sorted(a)
    if a:
        left = forget(view_of(one, shift=-2, copy=3), two)
        assert {f for run in left for f in range(run.first, run.stop)} == a - b
        assert all((run.copy, run.shift) == (3, -2) for run in left)


def moved(block: range) -> Fed:
    return Fed(block, 1, 4, stores=False)


def test_frames_of_a_block_share_what_they_see() -> None:
    now = Now((range(12),), (range(9, 12),), (range(9),))
    assert Full().view(moved(range(9, 12)), now) == (Run(0, 12),)
    assert Full().view(Fed(range(3, 6), 4, 4, True), now) == (Run(0, 6),)
    assert Window(6).view(moved(range(9, 12)), now) == (Run(6, 12),)
    assert Window(6, sink=3).view(moved(range(9, 12)), now) == (Run(0, 3), Run(6, 12))
    assert Window(9, sink=3).view(moved(range(9, 12)), now) == (Run(0, 12),)
    assert RecomputedWindow(6).view(moved(range(9, 12)), now) == (Run(6, 12, 0, -6),)


def test_a_joint_window_shows_blocks_in_flight_to_each_other_and_stores_them_without() -> None:
    now = Now((range(18),), (range(9, 18),), (range(9),))
    memory = Window(12, sink=3, joint=True)
    for start in (9, 12, 15):
        assert memory.view(moved(range(start, start + 3)), now) == (Run(0, 3), Run(6, 18))
    assert memory.view(Fed(range(6, 9), 4, 4, True), now) == (Run(0, 9),)


def test_places_of_a_view() -> None:
    view = (Run(0, 2), Run(6, 9), Run(9, 12))
    assert place(view, "window") == (Run(0, 2), Run(6, 9, 0, -4), Run(9, 12, 0, -4))
    # The sink is glued in front of what follows it.
    assert place((Run(0, 3), Run(6, 18)), "anchored") == (Run(0, 3, 0, 3), Run(6, 18))
    assert place((Run(0, 12),), "anchored") == place((Run(0, 12),), "window") == (Run(0, 12),)


def test_frames_in_any_order_see_those_that_have_started() -> None:
    now = Now((range(4), range(10, 13)), (range(2, 4), range(10, 13)), (range(2),))
    fed = moved(range(2, 4))
    assert Full(joint=True).view(fed, now) == (Run(0, 4), Run(10, 13))
    assert Full().view(fed, now) == (Run(0, 4),)
