# SPDX-License-Identifier: Apache-2.0
"""What verify finds: plans broken by hand, single changes of cells, plans that lie about themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from effort import examples
from helpers.plan_sizes import sizes
from hypothesis import given, settings
from hypothesis import strategies as st

from ardiff_engine import plan
from ardiff_engine.errors import PlanError
from ardiff_engine.plan import LagPlan, Tick


def rebuilt(ticks: list[Tick], prefix: int = 1) -> plan.ExplicitPlan:
    return plan.explicit(ticks, num_frames=5, num_steps=4, prefix=prefix)


def without(tick: Tick, frame: int) -> Tick:
    cells = [(f, k) for f, k in zip(tick.frames, tick.levels, strict=True) if f != frame]
    return Tick(tick.index, tuple(f for f, _ in cells), tuple(k for _, k in cells))


def added(tick: Tick, frame: int, level: int) -> Tick:
    cells = sorted([*zip(tick.frames, tick.levels, strict=True), (frame, level)], key=lambda c: c[0])
    return Tick(tick.index, tuple(f for f, _ in cells), tuple(k for _, k in cells))


def broken_plans() -> dict[str, tuple[str, Callable[[list[Tick]], None]]]:
    """What verify must say, and how to break 5 frames x 4 steps with lag 2 and one given frame."""

    def at(n: int, change: Callable[[Tick], Tick]) -> Callable[[list[Tick]], None]:
        def apply(ticks: list[Tick]) -> None:
            ticks[n] = change(ticks[n])

        return apply

    def swap(ticks: list[Tick]) -> None:
        ticks[1], ticks[2] = replace(ticks[2], index=1), replace(ticks[1], index=2)

    def stop_early(ticks: list[Tick]) -> None:
        ticks.pop()

    def empty(ticks: list[Tick]) -> None:
        ticks.append(Tick(len(ticks), (), ()))

    return {
        "skipped step": ("at level", at(1, lambda t: replace(t, levels=(2,)))),
        "dropped cell": ("noisier", at(3, lambda t: without(t, 1))),
        "later frame first": ("noisier", at(0, lambda t: replace(t, frames=(2,)))),
        "wrong level": ("at level", at(3, lambda t: replace(t, levels=(2, 1)))),
        "swapped ticks": ("at level", swap),
        "one step too many": ("is finished", at(5, lambda t: added(t, 1, 4))),
        "given frame moved": ("given frame 0", at(0, lambda t: added(t, 0, 4))),
        "frame twice": ("each once", at(2, lambda t: added(t, 1, 3))),
        "unsorted": ("ascending", at(2, lambda t: Tick(2, t.frames[::-1], t.levels[::-1]))),
        "misnumbered": ("numbered", at(2, lambda t: replace(t, index=3))),
        "empty tick": ("moves nothing", empty),
        "unfinished": ("unfinished", stop_early),
    }


@pytest.mark.parametrize("name", broken_plans())
def test_verify_names_what_is_broken(name: str) -> None:
    message, spoil = broken_plans()[name]
    ticks = list(plan.lag(5, 4, 2, prefix=1).ticks())
    rebuilt(ticks).verify()
    spoil(ticks)
    with pytest.raises(PlanError, match=message):
        rebuilt(ticks).verify()


@settings(max_examples=examples(300), deadline=None)
@given(sizes, st.data())
def test_verify_catches_every_single_change_of_a_cell(
    size: tuple[int, int, int, int], data: st.DataObject
) -> None:
    """Drop a cell or change its level: no plan survives any of it."""
    generated, steps, lag, prefix = size
    ticks = list(plan.lag(generated + prefix, steps, lag, prefix).ticks())
    n = data.draw(st.integers(0, len(ticks) - 1))
    cell = data.draw(st.integers(0, len(ticks[n]) - 1))
    tick = ticks[n]
    if data.draw(st.booleans()):
        tick = without(tick, tick.frames[cell])
    else:
        levels = list(tick.levels)
        levels[cell] += data.draw(st.sampled_from([-1, 1]))
        tick = replace(tick, levels=tuple(levels))
    ticks[n] = tick
    with pytest.raises(PlanError):
        plan.explicit(ticks, generated + prefix, steps, prefix).verify()


def test_a_plan_that_is_free_of_the_order_may_start_at_the_end() -> None:
    ticks = [Tick(0, (2,), (0,)), Tick(1, (2,), (1,)), Tick(2, (0, 1), (0, 0)), Tick(3, (0, 1), (1, 1))]
    ours = plan.explicit(ticks, 3, 2, ordered=False)
    ours.verify()
    assert ours.now(2).finished == (range(2, 3),) and ours.now(2).unfinished == (range(0, 2),)
    with pytest.raises(PlanError, match="noisier"):
        plan.explicit(ticks, 3, 2).verify()


def test_blocks_of_a_list_move_together() -> None:
    """Two blocks of two frames, block lag 2 of 3 steps: both frames of a block share one level."""
    ticks = [
        Tick(0, (0, 1), (0, 0)),
        Tick(1, (0, 1), (1, 1)),
        Tick(2, (0, 1, 2, 3), (2, 2, 0, 0)),
        Tick(3, (2, 3), (1, 1)),
        Tick(4, (2, 3), (2, 2)),
    ]
    blocks = [range(2), range(2, 4)]
    ours = plan.explicit(ticks, 4, 3, blocks=blocks)
    ours.verify()
    np.testing.assert_array_equal(ours.levels()[2], [3, 3, 1, 1])
    assert ours.max_live == 4
    np.testing.assert_array_equal(ours.levels(), plan.lag(4, 3, 2, block=2).levels())
    ticks[1] = Tick(1, (0,), (1,))
    with pytest.raises(PlanError, match="of its block"):
        plan.explicit(ticks, 4, 3, blocks=blocks).verify()
    with pytest.raises(PlanError, match="blocks"):
        plan.explicit(ticks, 4, 3, blocks=[range(2), range(3, 4)])


def test_a_block_may_be_given_in_part() -> None:
    given = [Tick(n, (2, 3), (n, n)) for n in range(3)]
    plan.explicit(given, 4, 3, prefix=2, blocks=[range(4)]).verify()
    with pytest.raises(PlanError, match="of its block"):
        plan.explicit(given, 4, 3, prefix=1, blocks=[range(4)]).verify()
    for frames, prefix in ((9, 1), (9, 5), (None, 4)):
        ours = plan.blocks(3, given_within=True).plan(frames, (2, 1), prefix)
        ours.verify(None if frames else 6)
        assert ours.tick(0).frames == tuple(range(prefix, -(-prefix // 3) * 3))
        assert ours.now(0).finished == (range(prefix),)
    with pytest.raises(PlanError, match="given"):
        plan.blocks(3).plan(9, (2,), 4)


@dataclass(frozen=True)
class Liar(LagPlan):
    """A rule whose answers do not agree with its ticks."""

    about: str = ""

    def newest(self, n: int) -> int:
        return LagPlan.newest(self, n) + (self.about == "newest" and n == 7)

    def level(self, frame: int, n: int) -> int:
        return LagPlan.level(self, frame, n) + (self.about == "level" and (frame, n) == (0, 9))

    @property
    def max_live(self) -> int:
        return LagPlan.max_live.fget(self) - (self.about == "max_live")


@pytest.mark.parametrize("about", ["newest", "level", "max_live"])
def test_verify_compares_what_a_plan_says_with_what_it_does(about: str) -> None:
    Liar(8, 6, 2).verify()
    with pytest.raises(PlanError):
        Liar(8, 6, 2, about=about).verify()


def test_ragged_ticks_and_unknown_frames_are_refused_at_once() -> None:
    with pytest.raises(PlanError):
        Tick(0, (0, 1), (0,))
    with pytest.raises(PlanError):
        plan.explicit([Tick(0, (3,), (0,))], num_frames=3, num_steps=1)
