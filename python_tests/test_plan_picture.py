# SPDX-License-Identifier: Apache-2.0
"""The picture of a plan: right colours in the right cells, bounded size, all kinds of plans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ardiff_engine import plan
from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.errors import MediaError, PlanError
from ardiff_engine.plan import Tick, picture


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def cell_centres(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Colours near the corner of each cell, for small plans."""
    width, height = picture.CELL_SIZES[0][1], picture.CELL_SIZES[1][1]
    top, left = picture.MARGIN + 58 + picture.AXIS_HEIGHT, picture.MARGIN + picture.AXIS_WIDTH
    y = top + np.arange(rows) * height + 2
    x = left + np.arange(columns) * width + 2
    return pixels[y[:, None], x[None, :]]


def test_every_cell_has_the_colour_of_what_happens_in_it(tmp_path: Path) -> None:
    ours = plan.lag(6, 8, 3, prefix=1)
    ours.plot(tmp_path / "plan.png")
    colours = cell_centres(opened(tmp_path / "plan.png"), ours.num_ticks, 6)
    for tick in ours.ticks():
        for frame in range(6):
            level = ours.level(frame, tick.index)
            if frame in tick.frames:
                expected = tuple(picture.ramp(np.array(1 - level / 8)))
            else:
                expected = picture.FINISHED if level == 8 else picture.WAITING
            assert tuple(colours[tick.index, frame]) == expected


def test_a_solver_sets_the_colours_by_its_timesteps(tmp_path: Path) -> None:
    solver = DDIM(NoiseSchedule.cosine(100), 4)
    plan.lag(2, 4, 2).plot(tmp_path / "plan.png", solver=solver)
    colours = cell_centres(opened(tmp_path / "plan.png"), 6, 2)
    expected = picture.ramp(solver.timesteps.numpy()[:4] / 99)
    np.testing.assert_array_equal(colours[:4, 0], expected)


@pytest.mark.parametrize(("frames", "lag"), [(16, 5), (64, 5), (128, 50), (700, 1), (1, 0)])
def test_size_stays_bounded(tmp_path: Path, frames: int, lag: int) -> None:
    plan.lag(frames, 50, lag).plot(tmp_path / "plan.png")
    height, width, _ = opened(tmp_path / "plan.png").shape
    assert 300 <= width <= 1500 and 300 <= height <= 1700


def test_endless_plans_show_their_beginning(tmp_path: Path) -> None:
    endless = plan.lag(None, 10, 4)
    endless.plot(tmp_path / "endless.png", num_ticks=30)
    assert opened(tmp_path / "endless.png").std() > 10
    with pytest.raises(PlanError):
        endless.plot(tmp_path / "none.png")
    with pytest.raises(PlanError):
        endless.plot(tmp_path / "none.png", num_ticks=0)
    with pytest.raises(PlanError):
        plan.lag(4, 10, 4).plot(tmp_path / "none.png", solver=DDIM(NoiseSchedule.sqrt_linear(), 50))
    assert not (tmp_path / "none.png").exists()


def test_frames_that_pause_are_shown(tmp_path: Path) -> None:
    ticks = [Tick(0, (0,), (0,)), Tick(1, (1,), (0,))]
    plan.explicit(ticks, 2, 2).plot(tmp_path / "plan.png")
    assert tuple(cell_centres(opened(tmp_path / "plan.png"), 2, 2)[1, 0]) == picture.PAUSED


def test_the_same_plan_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        plan.lag(16, 50, 5).plot(tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_the_ramp_grows_lighter_and_its_colours_stay_apart_from_the_others() -> None:
    shades = picture.ramp(np.linspace(1, 0, 51)).astype(float)
    luma = shades @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luma) > 0).all()
    others = (picture.WAITING, picture.FINISHED, picture.PAUSED, picture.PAPER)
    for i, one in enumerate(others):
        assert np.linalg.norm(shades - np.array(one), axis=1).min() > 60
        for other in others[i + 1 :]:
            assert np.linalg.norm(np.subtract(one, other)) > 15


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = plan.lag(2, 4, 2)
    ours.plot(tmp_path / "new" / "plan.png")
    before = (tmp_path / "new" / "plan.png").read_bytes()

    def full(self: Image.Image, path: Path, format: str) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(MediaError, match="No space left"):
        ours.plot(tmp_path / "new" / "plan.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plan.png"]
    assert (tmp_path / "new" / "plan.png").read_bytes() == before


@pytest.mark.parametrize("name", ["plan.jpg", "plan", "file/plan.png"])
def test_names_that_make_no_picture(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MediaError):
        plan.lag(2, 4, 2).plot(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
