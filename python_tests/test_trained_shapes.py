# SPDX-License-Identifier: Apache-2.0
"""The comparison on moving shapes: its measures, their gate, and that nothing is mixed with that on
digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ardiff_engine.cli import main as cli
from ardiff_engine.errors import ConfigError
from ardiff_engine.evaluation import intervals, trained_digits
from ardiff_engine.evaluation.digit_arms import Arm, Training, arm_config, run_name
from ardiff_engine.evaluation.digit_results import MAIN, Results
from ardiff_engine.evaluation.shape_measures import UNSEEN, centres_and_forms, measure_shapes
from ardiff_engine.evaluation.shape_world import SHAPES, HeldOutShapes, ShapeWorld
from ardiff_engine.evaluation.trained_digits import Protocol, check_measures, compare
from ardiff_engine.evaluation.worlds import FRAMES, GIVEN, World
from ardiff_engine.models import ARDiffusionTransformer

SMALL = Training(steps=2, batch=2, clips=2, width=16, depth=1)
CLIPS = 6


@pytest.fixture(scope="module")
def held_out() -> HeldOutShapes:
    return HeldOutShapes(ShapeWorld(), CLIPS)


def test_a_shape_is_where_the_world_put_it() -> None:
    """A triangle's mean pixel lies a third of its radius, 3 to 4 pixels, below its named centre."""
    drawn = SHAPES.batch(range(6), num_frames=4)
    centres, forms = centres_and_forms(
        np.stack([clip.video for clip in drawn]), [clip.scene for clip in drawn]
    )
    below = {clip.scene.shapes[0] == 2 for clip in drawn}
    assert below == {True, False} and forms.all()
    for clip, found in zip(drawn, centres, strict=True):
        x, y = (found - clip.centres[:, 0]).T
        assert np.abs(x).max() < 0.6
        assert (2.5 < y.min() and y.max() < 4.5) if clip.scene.shapes[0] == 2 else np.abs(y).max() < 0.6


def test_a_shape_that_is_elsewhere_or_gone() -> None:
    drawn = SHAPES.clip(0, num_frames=9)
    videos, scenes = drawn.video[None], [drawn.scene]
    truth = centres_and_forms(videos, scenes)[0]
    made = videos[:, 1:].copy()
    found = measure_shapes(made, scenes, truth)
    assert {name: values.tolist() for name, values in found.items()} | {"bounces": [1.0]} == {
        "position error": [0.0],
        "last position error": [0.0],
        "velocity error": [0.0],
        "bounces": [1.0],
        "seen": [1.0],
        "form": [1.0],
    }
    moved = measure_shapes(np.roll(made, 2, axis=2), scenes, truth)
    assert moved[MAIN].tolist() == [pytest.approx(2.0)], "two rows lower, away from the edges"
    assert moved["velocity error"].tolist() == [pytest.approx(2 / 8)], "one step is wrong"
    made[:, 4:] = 128
    gone = measure_shapes(made, scenes, truth)
    assert gone[MAIN].tolist() == [UNSEEN / 2] and gone["last position error"].tolist() == [UNSEEN]
    assert gone["form"].tolist() == gone["seen"].tolist() == [0.5]


def test_spoiled_shapes_are_found_and_a_blind_measure_is_refused(held_out: HeldOutShapes) -> None:
    references = held_out.references()
    check_measures(references, held_out.measures)
    assert not references["real clips"][MAIN].any() and references["reconstructions"][MAIN].max() < 1
    assert (references["reconstructions"]["form"] == 1).all()
    blind = references | {"shuffled": references["reconstructions"]}
    with pytest.raises(ConfigError, match="shuffled ones differ"):
        check_measures(blind, held_out.measures)


def test_latents_are_those_of_a_frame_and_back(held_out: HeldOutShapes, tmp_path: Path) -> None:
    world = ShapeWorld()
    assert held_out.given.shape == (CLIPS, GIVEN, 1, world.numbers)
    rebuilt = world.pixels(held_out.given[:2]).astype(float)
    true = np.stack([replace(SHAPES, split="held_out").clip(n).video[:GIVEN] for n in range(2)])
    assert np.abs(rebuilt - true).mean() < 4 < np.abs(rebuilt[:, 0] - true[:, -1]).mean()
    learned = world.source(2, 0, tmp_path / "l.safetensors").latents(range(3))[0]
    assert learned.shape == (3, FRAMES, 1, world.numbers) and 0.4 < float(learned.std()) < 0.6


def test_shapes_are_compared_apart_from_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 200)
    monkeypatch.setattr(trained_digits, "check_measures", lambda *_: None)  # of so few clips
    monkeypatch.setattr(trained_digits, "train_arm", untrained)
    found = compare(Protocol((Arm("iid"),), (0,), (0,), 4, 2, SMALL, world="shapes"), tmp_path)
    assert found.values("iid x0", 0, MAIN, [0]).shape == (1, 4)
    kept = {path.name for path in tmp_path.iterdir()}
    assert {"trained_digits_shapes.json", "shapes-iid-x0-0.json"} == kept
    assert run_name(Arm("iid"), 0, SMALL, "digits") == "iid-x0-0"
    assert Results.load(tmp_path / "trained_digits_shapes.json").markdown() == found.markdown()
    assert found.measures()[-1] == "form" and not found.stretches()
    assert cli(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    assert "trained_digits --protocol shapes" in (tmp_path / "r.html").read_text()


def untrained(arm: Arm, seed: int, training: Training, folder: Path, world: World) -> ARDiffusionTransformer:
    return ARDiffusionTransformer(arm_config(arm, seed, training, folder, world.numbers).model).eval()


def test_the_protocol_of_shapes() -> None:
    shapes = trained_digits.PROTOCOLS["shapes"]
    assert (shapes.world, shapes.arms, shapes.seeds) == ("shapes", Protocol().arms, Protocol().seeds)
