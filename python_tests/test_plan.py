# SPDX-License-Identifier: Apache-2.0
"""Plans: the official AD matrices, the rules of `verify` on random sizes, and plans broken by hand."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from effort import examples
from helpers.plan_sizes import sizes
from hypothesis import given, settings
from hypothesis import strategies as st

from ardiff_engine import plan
from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.errors import PlanError
from ardiff_engine.plan import Tick

GOLDEN = Path(__file__).parent / "golden"
LAGS = (0, 1, 2, 3, 4, 5, 10, 15, 20, 25, 50)


@dataclass(frozen=True)
class TinySolver:
    """Only what `Plan.timesteps` reads; the template 41, 31, 21, 11, 1 of the small official matrices."""

    num_steps: int = 5
    waiting_timestep: float = 999.0

    @property
    def timesteps(self) -> object:
        import torch

        return torch.tensor([41, 31, 21, 11, 1, 1], dtype=torch.float64)


CASES = [("ad_matrix_S50_total16_base16", lag, 16, 50, 16) for lag in LAGS]
CASES += [("ad_matrix_tiny_S5_total4_base3", lag, 4, 5, 3) for lag in (0, 1, 2, 4, 5)]


@pytest.mark.parametrize(("name", "lag", "frames", "steps", "window"), CASES)
def test_official_matrices(name: str, lag: int, frames: int, steps: int, window: int) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    solver = DDIM(NoiseSchedule.sqrt_linear(), 50) if steps == 50 else TinySolver()
    ours = plan.lag(frames, steps, lag)
    assert ours.levels().dtype == np.int64
    np.testing.assert_array_equal(ours.levels(), golden[f"s{lag}_stepindex"])
    np.testing.assert_array_equal(ours.timesteps(solver), golden[f"s{lag}_timesteps"])
    np.testing.assert_array_equal(ours.updates(), golden[f"s{lag}_update"])
    starts = [ours.window_start(n, window) for n in range(ours.num_ticks)]
    np.testing.assert_array_equal(starts, golden[f"s{lag}_window"][:, 0])
    np.testing.assert_array_equal(np.add(starts, window), golden[f"s{lag}_window"][:, 1])


def test_official_iteration_counts_of_long_videos() -> None:
    counts = [50, 177, 304, 431, 558, 685, 1320, 1955, 2590, 3225, 6400]
    assert [plan.lag(128, 50, lag).num_ticks for lag in LAGS] == counts


def test_compaction_of_the_published_case() -> None:
    ours = plan.lag(16, 50, 5)
    assert (ours.num_ticks, ours.num_updates, ours.max_live) == (125, 800, 10)
    assert ours.levels().size == 2000


def test_a_tick_in_full() -> None:
    ours = plan.lag(4, 5, 2, prefix=1)
    assert ours.tick(0) == Tick(0, (1,), (0,))
    assert ours.tick(4) == Tick(4, (1, 2, 3), (4, 2, 0))
    assert ours.tick(5) == Tick(5, (2, 3), (3, 1))
    assert ours.tick(8) == Tick(8, (3,), (4,))
    assert ours.num_ticks == 9 and len(ours.tick(5)) == 2


def test_the_ends_of_the_lag() -> None:
    assert plan.synchronous(4, 6) == plan.lag(4, 6, 0)
    assert plan.autoregressive(4, 6) == plan.lag(4, 6, 6)
    assert all(len(tick) == 4 for tick in plan.synchronous(4, 6).ticks())
    assert all(len(tick) == 1 for tick in plan.autoregressive(4, 6).ticks())


@settings(max_examples=examples(200), deadline=None)
@given(sizes)
def test_lag_plans_keep_every_rule(size: tuple[int, int, int, int]) -> None:
    generated, steps, lag, prefix = size
    ours = plan.lag(generated + prefix, steps, lag, prefix)
    ours.verify()
    assert ours.num_updates == generated * steps
    levels = ours.levels()
    assert (np.diff(levels, axis=1) <= 0).all()
    assert (levels[-1] == steps).all()
    assert max(len(tick) for tick in ours.ticks()) == ours.max_live


@settings(max_examples=examples(100), deadline=None)
@given(sizes)
def test_the_closed_forms_are_those_of_the_same_plan_tick_by_tick(size: tuple[int, int, int, int]) -> None:
    generated, steps, lag, prefix = size
    closed = plan.lag(generated + prefix, steps, lag, prefix)
    listed = plan.explicit(closed.ticks(), generated + prefix, steps, prefix)
    listed.verify()
    np.testing.assert_array_equal(closed.levels(), listed.levels())
    np.testing.assert_array_equal(closed.updates(), listed.updates())
    assert closed.num_ticks == listed.num_ticks and closed.max_live == listed.max_live
    for n in range(closed.num_ticks):
        assert closed.newest(n) == listed.newest(n)
        assert closed.oldest_unfinished(n) == listed.oldest_unfinished(n)
        assert [closed.level(f, n) for f in range(generated + prefix)] == [
            listed.level(f, n) for f in range(generated + prefix)
        ]
    assert closed.oldest_unfinished(closed.num_ticks) == generated + prefix


@settings(max_examples=examples(100), deadline=None)
@given(sizes, st.integers(1, 14))
def test_check_window_accepts_exactly_the_windows_that_drop_nothing(
    size: tuple[int, int, int, int], window: int
) -> None:
    generated, steps, lag, prefix = size
    closed = plan.lag(generated + prefix, steps, lag, prefix)
    for ours in (closed, plan.explicit(closed.ticks(), generated + prefix, steps, prefix)):
        ticks = range(closed.num_ticks)
        drops = any(ours.oldest_unfinished(n) < ours.window_start(n, window) for n in ticks)
        first = [n for n in ticks if prefix and ours.level(prefix, n) < steps]
        forgets = any(ours.window_start(n, window) >= prefix for n in first)
        for keep_given in (True, False):
            if drops or (forgets and keep_given):
                with pytest.raises(PlanError):
                    ours.check_window(window, keep_given=keep_given)
            else:
                ours.check_window(window, keep_given=keep_given)


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(1, 60).flatmap(lambda s: st.tuples(st.just(s), st.integers(1, s), st.integers(0, 4))))
def test_endless_plans_begin_like_long_ones(size: tuple[int, int, int]) -> None:
    steps, lag, prefix = size
    endless = plan.lag(None, steps, lag, prefix)
    ticks = 2 * steps + 3 * lag
    finite = plan.lag(prefix + ticks + 2, steps, lag, prefix)
    assert endless.num_ticks is None
    assert list(islice(endless.ticks(), ticks)) == list(islice(finite.ticks(), ticks))
    levels = endless.levels(ticks)
    np.testing.assert_array_equal(levels, finite.levels(ticks)[:, : levels.shape[1]])
    assert (endless.newest(ticks), endless.oldest_unfinished(ticks)) == (
        finite.newest(ticks),
        finite.oldest_unfinished(ticks),
    )
    assert endless.max_live == finite.max_live
    endless.verify(ticks)


def test_an_endless_plan_can_be_entered_anywhere() -> None:
    endless = plan.lag(None, 50, 5)
    far = endless.tick(10**9)
    assert far.frames == tuple(range(199_999_991, 200_000_001))
    assert far.levels == tuple(range(45, -1, -5))
    assert next(endless.ticks(start=10**9)) == far


@pytest.mark.parametrize("question", ["levels", "updates", "verify", "num_updates", "check"])
def test_endless_plans_have_no_whole(question: str) -> None:
    endless = plan.lag(None, 50, 5)
    with pytest.raises(PlanError, match="endless"):
        if question == "check":
            plan.verify(endless)
        else:
            attribute = getattr(endless, question)
            attribute()


@pytest.mark.parametrize(
    ("frames", "steps", "lag", "prefix"),
    [
        (0, 50, 5, 0),
        (-1, 50, 5, 0),
        (16, 0, 0, 0),
        (16, 50, -1, 0),
        (16, 50, 51, 0),
        (16, 50, 5, -1),
        (16, 50, 5, 16),
        (16, 50, 5, 17),
        (None, 50, 0, 0),
    ],
)
def test_bad_sizes_are_refused(frames: int | None, steps: int, lag: int, prefix: int) -> None:
    with pytest.raises(PlanError):
        plan.lag(frames, steps, lag, prefix)


def test_ticks_outside_the_plan_are_refused() -> None:
    ours = plan.lag(2, 3, 1)
    for n in (-1, ours.num_ticks):
        with pytest.raises(PlanError):
            ours.tick(n)
    with pytest.raises(PlanError):
        ours.levels(ours.num_ticks + 1)
    with pytest.raises(PlanError):
        ours.levels(-1)


def test_timesteps_need_a_solver_with_as_many_steps() -> None:
    with pytest.raises(PlanError):
        plan.lag(16, 25, 5).timesteps(DDIM(NoiseSchedule.sqrt_linear(), 50))


def test_window_of_the_published_model() -> None:
    for lag in (4, 5, 10, 50):
        plan.lag(128, 50, lag).check_window(16)
        plan.lag(None, 50, lag).check_window(16)
    for lag in (0, 1, 2, 3):
        plan.lag(16, 50, lag).check_window(16)
        plan.lag(19, 50, lag, prefix=4).check_window(16)
        with pytest.raises(PlanError, match="window of 17 or more"):
            plan.lag(20, 50, lag, prefix=4).check_window(16)
        with pytest.raises(PlanError, match="lag of 4 or more"):
            plan.lag(128, 50, lag).check_window(16)
    with pytest.raises(PlanError, match="window of 17 or more"):
        plan.lag(None, 50, 3).check_window(16)
    with pytest.raises(PlanError, match="window of 128 or more"):
        plan.lag(128, 50, 0).check_window(16)
    with pytest.raises(PlanError):
        plan.lag(None, 50, 5).check_window(0)


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_the_advice_of_check_window_works_and_less_does_not(
    steps: int, window: int, data: st.DataObject
) -> None:
    lag = data.draw(st.integers(1, steps))
    if window * lag >= steps:
        plan.lag(None, steps, lag).check_window(window)
        return
    with pytest.raises(PlanError) as caught:
        plan.lag(None, steps, lag).check_window(window)
    words = str(caught.value).split("lag of ")[1].split()
    best_lag, best_window = int(words[0]), int(str(caught.value).split("window of ")[-1].split()[0])
    plan.lag(None, steps, best_lag).check_window(window)
    plan.lag(None, steps, lag).check_window(best_window)
    with pytest.raises(PlanError):
        plan.lag(None, steps, lag).check_window(best_window - 1)
    if best_lag > 1:
        with pytest.raises(PlanError):
            plan.lag(None, steps, best_lag - 1).check_window(window)


def test_summaries() -> None:
    assert plan.lag(16, 50, 5).summary == "16 frames · 50 steps · lag 5"
    assert plan.lag(None, 50, 5, prefix=2).summary == "endless (2 given) · 50 steps · lag 5"


def test_a_window_that_forgets_the_given_clip_is_refused() -> None:
    """8 given and 8 new frames at once in a window of 8: no new frame would ever see a given one."""
    ours = plan.lag(16, 50, 0, prefix=8)
    assert ours.window_start(0, 8) == 8
    with pytest.raises(PlanError, match="frames"):
        ours.check_window(8)
    ours.check_window(9)
    ours.check_window(8, keep_given=False)
    plan.lag(16, 50, 8, prefix=8).check_window(8)
    with pytest.raises(PlanError):
        plan.lag(16, 50, 7, prefix=8).check_window(8)
    with pytest.raises(PlanError, match="window"):
        plan.autoregressive(16, 50, prefix=8).check_window(1)
    plan.autoregressive(16, 50, prefix=8).check_window(2)
    plan.autoregressive(16, 50).check_window(1)


@pytest.mark.parametrize("bad", [2.5, 6.0, "6", None, [1]])
@pytest.mark.parametrize("name", ["num_frames", "num_steps", "lag", "prefix"])
def test_sizes_that_are_no_integers_are_refused(name: str, bad: object) -> None:
    sizes = {"num_frames": 6, "num_steps": 5, "lag": 2, "prefix": 1}
    if name == "num_frames" and bad is None:
        assert plan.lag(**{**sizes, name: bad}).num_ticks is None
        return
    with pytest.raises(PlanError, match=name):
        plan.lag(**{**sizes, name: bad})
    if name != "lag":
        with pytest.raises(PlanError, match=name):
            plan.explicit([], **{n: bad if n == name else v for n, v in sizes.items() if n != "lag"})


def test_integers_of_numpy() -> None:
    ours = plan.lag(np.int64(6), np.int32(5), np.int8(2), np.int64(1))
    assert ours == plan.lag(6, 5, 2, 1) and type(ours.num_frames) is int and type(ours.lag) is int
    assert ours.tick(np.int64(3)) == plan.lag(6, 5, 2, 1).tick(3)
    ours.check_window(np.int64(5))
    with pytest.raises(PlanError, match="window"):
        ours.check_window(4.5)


def test_frames_and_ticks_that_do_not_exist() -> None:
    closed = plan.lag(6, 5, 2, 1)
    listed = plan.explicit(closed.ticks(), 6, 5, 1)
    for ours in (closed, listed):
        for frame in (-1, 6, 99, 1.5):
            with pytest.raises(PlanError, match="frame"):
                ours.level(frame, 3)
        for tick in (1.5, "1", None):
            with pytest.raises(PlanError, match="tick"):
                ours.tick(tick)
            with pytest.raises(PlanError, match="tick"):
                ours.level(1, tick)
    assert plan.lag(None, 5, 2).level(99, 3) == 0


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("frames", [1, 4, 9, None])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_steady_ticks_update_the_same_frames_and_start_none(
    frames: int | None, steps: int, prefix: int
) -> None:
    for lag in range(0 if frames is not None else 1, steps + 1):
        made = plan.lag(None if frames is None else frames + prefix, steps, lag, prefix=prefix)
        last = 40 if made.num_ticks is None else made.num_ticks
        for n in range(last):
            until = made.steady_until(n)
            assert until > n
            first = made.tick(n)
            for m in range(n, min(until, last)):
                tick = made.tick(m)
                assert tick.frames == first.frames and made.newest(m) == made.newest(n)
                assert all(made.level(f, m) == made.level(f, n) + m - n for f in tick.frames)
            if until < last:  # and it is not shorter than it must be
                ended = made.tick(until)
                assert ended.frames != first.frames or made.newest(until) != made.newest(n)
