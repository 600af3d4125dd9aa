# SPDX-License-Identifier: Apache-2.0
"""Rules: every plan they make keeps the rules of `verify`, and moves what the official code moved."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from ardiff_engine import plan
from ardiff_engine.errors import PlanError
from ardiff_engine.plan import Cycle, ExplicitPlan, Plan, Rule

GOLDEN = Path(__file__).parent / "golden" / "systems"


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    size, first = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    given_blocks, blocks = draw(st.integers(0, 2)), draw(st.integers(1, 5))
    steps = draw(st.integers(1, 6))
    length = lambda count: first + (count - 1) * size if count else 0  # noqa: E731
    prefix, frames = length(given_blocks), length(given_blocks + blocks)
    window = draw(st.sampled_from([w for w in range(1, steps + 1) if steps % w == 0]))
    tracks = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    order = draw(st.permutations(range(frames)))
    cuts = sorted(draw(st.sets(st.integers(1, frames), max_size=3)) | {0, frames})
    groups = [order[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    rule, own = draw(
        st.sampled_from(
            [
                (plan.blocks(size, first), tracks),
                (plan.blocks(size, first, lag=draw(st.integers(0, steps))), (steps,)),
                (plan.rolling(window, size, first), (steps,)),
                (plan.staged(window, size, first), (steps,)),
                (plan.stage_major(size, first), (steps,)),
                (plan.stage_major(size, first, pipelined=True), (steps,)),
                (plan.stage_major(size, first, ahead=1), (steps,)),
                (plan.stage_major(size, first, pipelined=True, ahead=2), (steps,)),
                (plan.sets(groups), (steps,)),
                (plan.pyramid(draw(st.floats(0, 7)), size, first), (steps,)),
            ]
        )
    )
    assert isinstance(rule, Rule)
    return rule.plan(frames, own, prefix)


@settings(max_examples=examples(300), deadline=None)
@given(plans())
def test_every_plan_keeps_the_rules(ours: Plan) -> None:
    ours.verify()
    assert ours.num_updates == sum(ours.steps(frame) for frame in range(ours.prefix, ours.num_frames))
    assert ours.rule in ours.summary and ours.now(ours.num_ticks).finished == (range(ours.num_frames),)
    for n in range(ours.num_ticks):
        until = ours.steady_until(n)
        assert until > n
        same = [(ours.tick(m).frames, ours.now(m)) for m in range(n, min(until, ours.num_ticks))]
        assert all(one == same[0] for one in same)


@settings(max_examples=examples(300), deadline=None)
@given(plans(), st.integers(4, 12))
def test_ticks_repeat_as_the_plan_says(short: Plan, blocks: int) -> None:
    """Longer videos: a cycle begins behind the first blocks."""
    if isinstance(short, ExplicitPlan):
        return
    ours = short.extended(blocks * short.block(short.num_frames).stop - blocks * short.num_frames)
    moved = lambda frames, by: tuple(f + by for f in frames)  # noqa: E731
    for n in range(ours.num_ticks):
        cycle = ours.cycle(n)
        for m in range(n, 0 if cycle is None else cycle.end - cycle.ticks):
            one, other = ours.tick(m), ours.tick(m + cycle.ticks)
            assert other.levels == one.levels and other.frames == moved(one.frames, cycle.frames)
            assert [ours.steps(f) for f in other.frames] == [ours.steps(f) for f in one.frames]
            now, later = ours.now(m), ours.now(m + cycle.ticks)
            assert later.newest == now.newest + cycle.frames
            assert later.oldest_unfinished == now.oldest_unfinished + cycle.frames
            assert ours.block(other.frames[0]).start == ours.block(one.frames[0]).start + cycle.frames


def test_which_plans_repeat() -> None:
    assert plan.lag(None, 6, 2).cycle(20) == Cycle(2, 1, None)
    assert plan.blocks(3).plan(30, (4, 3)).cycle(20) == Cycle(3, 3, 31)
    assert plan.blocks(3).plan(None, (4,)).cycle(2) is None  # the first block may be of another size
    assert plan.pyramid(1.5).plan(30, (6,)).cycle(20) is None


@settings(max_examples=examples(100), deadline=None)
@given(plans())
def test_closed_forms_are_those_of_the_listed_ticks(ours: Plan) -> None:
    if len({ours.steps(f) for f in range(ours.num_frames)}) > 1:
        return  # a list of ticks has one track
    blocks = list(dict.fromkeys(ours.block(f) for f in range(ours.num_frames)))
    listed = plan.explicit(ours.ticks(), ours.num_frames, ours.steps(0), ours.prefix, ours.ordered, blocks)
    np.testing.assert_array_equal(ours.levels(), listed.levels())
    assert ours.max_live == listed.max_live
    for n in range(ours.num_ticks + 1):
        assert ours.now(n) == listed.now(n)
        assert ours.newest(n) == listed.newest(n) or n == ours.num_ticks


@settings(max_examples=examples(100), deadline=None)
@given(plans(), st.data())
def test_a_plan_goes_on_from_every_block_with_the_tracks_it_had(ours: Plan, data: st.DataObject) -> None:
    blocks = list(dict.fromkeys(ours.block(f) for f in range(ours.prefix, ours.num_frames)))
    block = data.draw(st.sampled_from(blocks))
    new = ours.continued(block.start)
    new.verify()
    assert (new.prefix, new.num_frames) == (block.start, ours.num_frames)
    assert all(new.track(f) == ours.track(f) for f in range(block.start, ours.num_frames))


@settings(max_examples=examples(100), deadline=None)
@given(plans(), st.integers(1, 3))
def test_a_longer_plan_moves_the_old_frames_as_before(ours: Plan, blocks: int) -> None:
    size = len(ours.block(ours.num_frames - 1))
    try:
        longer = ours.extended(blocks * size)
    except PlanError:
        return  # sets, and a video of one first block whose size is another
    longer.verify()
    assert longer.num_frames == ours.num_frames + blocks * size
    if "stage" not in ours.rule:
        columns = longer.levels(min(ours.num_ticks, longer.num_ticks))[:, : ours.num_frames]
        np.testing.assert_array_equal(columns, ours.levels(len(columns)))


@pytest.mark.parametrize(
    "rule", [plan.blocks(3), plan.blocks(2, 1), plan.blocks(3, lag=2), plan.rolling(4, 3)]
)
def test_endless_plans_begin_like_long_ones(rule: Rule) -> None:
    steps = (4, 3, 2) if rule == plan.blocks(2, 1) else (4,)
    endless, finite = rule.plan(None, steps, 0), rule.plan(61 if rule == plan.blocks(2, 1) else 60, steps, 0)
    assert list(islice(endless.ticks(), 15)) == list(islice(finite.ticks(), 15))
    assert endless.max_live == finite.max_live
    endless.verify(15)
    for size in range(1, 14):
        assert fits(endless, size) == fits(finite, size)


def fits(ours: Plan, window: int) -> bool:
    try:
        ours.check_window(window)
    except PlanError:
        return False
    return True


def test_blocks_that_do_not_divide_the_video_name_the_nearest_lengths() -> None:
    with pytest.raises(PlanError, match="9 or 12"):
        plan.blocks(3).plan(10, (4,))
    with pytest.raises(PlanError, match="7 or 10"):
        plan.blocks(3, first=1).plan(9, (4,))
    with pytest.raises(PlanError, match="lengths are 4"):
        plan.blocks(3, first=4).plan(3, (4,))
    with pytest.raises(PlanError, match="given frames.*3 or 6"):
        plan.blocks(3).plan(12, (4,), 4)
    with pytest.raises(PlanError, match="3 or 6"):
        plan.blocks(3).plan(9, (4,)).continued(5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: plan.blocks(0),
        lambda: plan.blocks(2.5),
        lambda: plan.blocks(3, first=-1),
        lambda: plan.blocks(3).plan(9, ()),
        lambda: plan.blocks(3).plan(9, (4, 0)),
        lambda: plan.blocks(3, lag=2).plan(9, (4, 3)),
        lambda: plan.blocks(3, lag=5).plan(9, (4,)),
        lambda: plan.rolling(3).plan(9, (4,)),
        lambda: plan.staged(0).plan(9, (4,)),
        lambda: plan.pyramid(-0.5).plan(9, (4,)),
        lambda: plan.pyramid(float("nan")).plan(9, (4,)),
        lambda: plan.pyramid(1).plan(None, (4,)),
        lambda: plan.stage_major().plan(None, (4,)),
        lambda: plan.sets([[0, 1], [1, 2]]).plan(3, (4,)),
        lambda: plan.sets([[0, 1]]).plan(3, (4,)),
    ],
)
def test_bad_sizes_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(PlanError):
        make()


MMPL = plan.sets([[0], [1], [2, 3, 10, 11, 12, 19, 20], [4, 5, 6, 7, 8, 9], [13, 14, 15, 16, 17, 18]])
MOVES = {
    "self_forcing_F9": (plan.blocks(3), (4,), 0),
    "self_forcing_i2v_1_4_4": (plan.blocks(4, first=1), (2,), 1),
    "self_forcing_prefix3_F9": (plan.blocks(3), (4,), 3),
    "causvid_F9": (plan.blocks(3), (3,), 0),
    "longlive1_F21": (plan.blocks(3), (4,), 0),
    "causal_forcing_framewise_1step_F6": (plan.blocks(1), (4, 1), 0),
    "causal_forcing_framewise_2step_F6": (plan.blocks(1), (4, 2), 0),
    "causal_forcing_framewise_4step_F5": (plan.blocks(1), (4,), 0),
    "diagonal_distillation_F21": (plan.blocks(3), (4, 3, 2), 0),
    "rolling_forcing_F12_S4": (plan.rolling(4, 3), (4,), 0),
    "rolling_forcing_F21_S5": (plan.rolling(5, 3), (5,), 0),
    "hiar_stage_major_F9_S4": (plan.stage_major(3), (4,), 0),
    "magi1_C6_S8_W4": (plan.staged(4), (8,), 0),
    "magi1_C5_S4_W2": (plan.staged(2), (4,), 0),
    "mmpl_segment_S3": (MMPL, (3,), 2),
    "diffusion_forcing_pyramid_u05_F6_S5": (plan.pyramid(0.5), (5,), 2),
    "diffusion_forcing_pyramid_u1_F6_S5": (plan.pyramid(1), (5,), 2),
    "skyreels_v2_F5_S4_ar2": (plan.blocks(1, lag=2), (4,), 0),
    "skyreels_v2_F6_S8_ar3_block2": (plan.blocks(2, lag=3), (8,), 0),
}


@pytest.mark.parametrize("name", MOVES)
def test_what_the_official_code_moves(name: str) -> None:
    """Calls that update nothing store K/V, and are the memory's business."""
    rule, steps, prefix = MOVES[name]
    with np.load(GOLDEN / f"{name}.npz") as golden:
        updated, timestep = golden["updated"], golden["timestep"]
    calls = np.flatnonzero(updated.any(axis=1))
    ours = rule.plan(updated.shape[1], steps, prefix)
    ours.verify()
    np.testing.assert_array_equal(ours.updates(), updated[calls])
    # One timestep belongs to every level of a track (the first two blocks of Diagonal Distillation are told
    # 357, the later ones 357.14), and other levels have other ones.
    told: dict[tuple[int, int], float] = {}
    for n, call in enumerate(calls):
        for frame in ours.tick(n).frames:
            key = (ours.track(frame), ours.level(frame, n))
            assert told.setdefault(key, timestep[call, frame]) == timestep[call, frame]
    for track in {track for track, _ in told}:
        levels = [told[key] for key in sorted(told) if key[0] == track]
        assert len(set(levels)) == len(levels)


def test_the_pipelined_order_is_the_diagonals_of_the_official_one() -> None:
    """The official code runs the cells of a diagonal one by one; a tick moves them together."""
    with np.load(GOLDEN / "hiar_pipelined_F9_S4.npz") as golden:
        updated = golden["updated"][golden["updated"].any(axis=1)]
    ours = plan.stage_major(3, pipelined=True).plan(9, (4,))
    moved = np.cumsum(updated, axis=0)
    done = 0
    for n in range(ours.num_ticks):
        done += len(ours.tick(n)) // 3
        np.testing.assert_array_equal(ours.levels()[n], moved[done - 1])
    assert done == len(updated)


@pytest.mark.parametrize("name", ["self_forcing_F9", "hiar_stage_major_F9_S4", "mmpl_segment_S3"])
def test_pictures(name: str, tmp_path: Path) -> None:
    rule, steps, prefix = MOVES[name]
    frames = {"mmpl_segment_S3": 21}.get(name, 9)
    rule.plan(frames, steps, prefix).plot(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 1000
