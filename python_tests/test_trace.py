# SPDX-License-Identifier: Apache-2.0
"""Plan and memory together, call by call, against what the official code of other systems did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ardiff_engine import plan
from ardiff_engine.errors import MediaError, PlanError
from ardiff_engine.memory import Full, MemoryPolicy, Placed, RecomputedWindow, Window
from ardiff_engine.plan import Rule
from ardiff_engine.plan.picture import AXIS_HEIGHT, AXIS_WIDTH, CELL_SIZES, MARGIN
from ardiff_engine.systems import Trace, picture, trace
from ardiff_engine.systems.calls import ANY_NETWORK, by_pass

GOLDEN = Path(__file__).parent / "golden" / "systems"
FOUR = (1000.0, 937.5, 833.3333, 625.0, 0.0)
FIVE = (1000.0, 952.381, 882.3529, 769.2308, 555.5556, 0.0)

Tracks = tuple[tuple[float, ...], ...]


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


def traced(rule: Rule, frames: int, given: int, memory: MemoryPolicy, tracks: Tracks, **options) -> Trace:
    ours = rule.plan(frames, tuple(len(track) - 1 for track in tracks), given)
    return trace(ours, memory, tracks, **options)


PYRAMID = ((999.0, 799.0, 599.0, 399.0, 199.0, 14.0, 999.0),)
# Frames that wait are fed too. SkyReels-V2 shows all to all; Diffusion Forcing tells clean frames level 14.
WHOLE_WINDOWS: dict[str, tuple[Rule, int, bool, Tracks]] = {
    "skyreels_v2_F5_S4_ar2": (plan.blocks(1, lag=2), 0, True, ((999.0, 959.0, 888.0, 727.0, 0.0, 999.0),)),
    "skyreels_v2_F6_S8_ar3_block2": (
        plan.blocks(2, lag=3),
        0,
        True,
        ((999.0, 982.0, 959.0, 930.0, 888.0, 827.0, 727.0, 533.0, 0.0, 999.0),),
    ),
    "diffusion_forcing_pyramid_u05_F6_S5": (plan.pyramid(0.5), 2, False, PYRAMID),
    "diffusion_forcing_pyramid_u1_F6_S5": (plan.pyramid(1.0), 2, False, PYRAMID),
}


@pytest.mark.parametrize("name", WHOLE_WINDOWS)
def test_networks_that_do_not_forget_are_fed_the_whole_window(name: str) -> None:
    rule, given, sees_later, tracks = WHOLE_WINDOWS[name]
    official = golden(name)
    spec = replace(ANY_NETWORK, forgets=False, frames_see_later=sees_later)
    frames, steps = official["fed"].shape[1], (len(tracks[0]) - 2,)
    ours = trace(
        rule.plan(frames, steps, given),
        RecomputedWindow(frames),
        tracks,
        spec=spec,
        calls_of=by_pass,
        stores_last=False,
    )
    for key in ("fed", "updated", "timestep", "visible", "position"):
        np.testing.assert_array_equal(getattr(ours, key), official[key], key)


def test_a_recomputed_window_is_seen_from_its_start() -> None:
    ours = traced(plan.blocks(1), 5, 0, RecomputedWindow(3), ((2.0, 1.0, 0.0),))
    last = ours.updated[:, 4].nonzero()[0]
    np.testing.assert_array_equal(ours.position[last], [[np.nan, np.nan, 0, 1, 2]] * 2)
    # Frames 2 and 3 were computed again when the window slid.
    assert ours.fed[last[0] - 2 : last[0], [2, 3]].any(axis=0).all()


def test_pictures(tmp_path: Path) -> None:
    ours = traced(plan.blocks(3), 15, 0, Placed(Window(5, sink=1), "window"), (FOUR,))
    picture.draw(ours, tmp_path / "new" / "trace.png", "Infinity-RoPE")
    with Image.open(tmp_path / "new" / "trace.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    # A corner of the cell of each (call, frame), where no number is.
    height, width = (low_high[1] for low_high in reversed(CELL_SIZES))
    rows = MARGIN + 58 + AXIS_HEIGHT + np.arange(len(ours.fed)) * height + 1
    columns = MARGIN + AXIS_WIDTH + np.arange(15) * width + 1
    found = pixels[rows[:, None], columns]
    stored = ours.fed & ~ours.updated
    assert (found[stored] == picture.STORED).all() and not (found[~stored] == picture.STORED).all(
        axis=1
    ).any()
    seen = ours.visible.any(axis=1) & ~ours.fed
    assert (found[seen] == picture.SEEN).all()
    assert (found[~ours.visible.any(axis=1)] == picture.UNSEEN).all()
    with pytest.raises(MediaError):
        picture.draw(ours, tmp_path / "trace.jpg")
    with pytest.raises(PlanError):
        picture.draw(Trace.empty(0, 3), tmp_path / "none.png")


@pytest.mark.parametrize("told", [(1000.0, 500.0, 0.0), (0.0, 0.5, 1.0)], ids=["falls", "rises"])
def test_noise_is_dark_however_time_runs(tmp_path: Path, told: tuple[float, ...]) -> None:
    path = tmp_path / "trace.png"
    picture.draw(traced(plan.blocks(1), 2, 0, Full(), (told,)), path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L")).astype(int)
    row, column = MARGIN + 58 + AXIS_HEIGHT + 1, MARGIN + AXIS_WIDTH + 1
    first, second = pixels[row, column], pixels[row + CELL_SIZES[1][1], column]
    assert first < 60 < second


def test_what_cannot_be_traced() -> None:
    with pytest.raises(PlanError, match="endless"):
        trace(plan.blocks(3).plan(None, (4,)), Window(6), (FOUR,))
    with pytest.raises(PlanError, match="timesteps"):
        trace(plan.blocks(3).plan(9, (4,)), Full(), (FOUR[1:],))
    endless = trace(plan.blocks(3).plan(None, (4,)), Window(6), (FOUR,), num_ticks=8)
    assert endless.fed.shape == (9, 6)
