# SPDX-License-Identifier: Apache-2.0
"""The way of moving-shapes from nothing to a bundled model, by its shipped configs at a small size: single
blocks, whole clips, few steps, float16 in one folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ardiff_engine import demo_shapes, read_video
from ardiff_engine.models.frame_vae import FrameVAE, FrameVAEConfig
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.pipeline.steered import SteeredPipeline
from ardiff_engine.training import run_train
from ardiff_engine.weights import load_model, save_model
from tools.average_runs import average
from tools.bundle_steered import bundle

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = (
    "run.steps=2",
    "run.batch=2",
    "run.validation_clips=2",
    "data.clips=4",
    "model.width=24",
    "model.depth=2",
    "model.heads=2",
    "model.mlp_width=32",
    "model.text_dim=16",
    "model.frequency_dim=16",
    "text.width=16",
)


@pytest.fixture(scope="module")
def legs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the three legs."""
    folder = tmp_path_factory.mktemp("shapes")
    torch.manual_seed(0)
    save_model(FrameVAE(FrameVAEConfig(channels=4, width=8)).eval(), folder / "vae")

    def leg(config: str, *changes: str) -> Path:
        places = {"vae": folder / "vae", "run.output": folder / config}
        given = [f"{name}={json.dumps(str(place))}" for name, place in places.items()]
        return run_train(CONFIGS / f"{config}.toml", [*SMALL, *given, *changes])

    first = leg("moving_shapes_first")
    mixed = ("run.batch=4", "run.log_every=1", "loss.first_blocks=0.8")
    second = leg("moving_shapes", f"init={json.dumps(str(first))}", *mixed)
    few = leg("moving_shapes_few_steps", f"distillation.teacher={json.dumps(str(second))}")
    return {"first": first, "second": second, "few": few}


def test_each_leg_begins_with_the_weights_of_the_one_before(legs: dict[str, Path]) -> None:
    weights = {name: load_model(folder / "transformer").state_dict() for name, folder in legs.items()}
    for before, after in (("first", "second"), ("second", "few")):
        apart = [
            float((value - weights[before][key]).norm() / value.norm().clamp(min=1e-6))
            for key, value in weights[after].items()
            if key.startswith("blocks") and key.endswith("q.weight")
        ]
        assert 0 < max(apart) < 0.2, f"{after} has moved a little from {before}"
    text = [load_model(legs[name] / "text_encoder").state_dict() for name in ("second", "few")]
    assert all(torch.equal(value, text[1][key]) for key, value in text[0].items()), "the teacher's for good"


def test_first_blocks_and_clips_are_learned_in_one_leg(legs: dict[str, Path]) -> None:
    lines = (legs["second"] / "training_log.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines if "gradient_norm" in line]
    assert {"first_loss", "clip_loss"} <= set().union(*found)


def test_two_legs_are_averaged(legs: dict[str, Path], tmp_path: Path) -> None:
    average(legs["first"], legs["second"], tmp_path / "mean")
    for part in ("transformer", "text_encoder"):
        ends = [load_model(legs[name] / part).state_dict() for name in ("first", "second")]
        for key, value in load_model(tmp_path / "mean" / part).state_dict().items():
            assert torch.allclose(value, (ends[0][key] + ends[1][key]) / 2, atol=1e-6)
    assert not (tmp_path / "mean" / "checkpoints").exists()
    bundle(tmp_path / "mean", tmp_path / "moving-shapes")
    with pytest.raises(ValueError, match="one network"):
        other = load_model(legs["first"] / "transformer").config
        smaller = WanTransformer(WanConfig(**other.to_dict() | {"depth": 1}))
        save_model(smaller, tmp_path / "small" / "transformer")
        average(tmp_path / "small", legs["second"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_bundle_is_half_as_large_names_no_machine_and_plays(legs: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "moving-shapes"
    target.mkdir()
    (target / "README.md").write_text("kept")
    size = bundle(legs["few"], target)
    assert size < 12 * 10**6 and (target / "README.md").read_text() == "kept"
    whole, half = (
        (place / "transformer" / "model.safetensors").stat().st_size for place in (legs["few"], target)
    )
    assert half < 0.6 * whole
    text = (target / "training_config.json").read_text()
    assert str(legs["few"].parent) not in text
    config, outputs = json.loads(text), "outputs/moving_shapes"
    told = config["run"]["output"], config["distillation"]["teacher"], config["init"]
    assert told == (f"{outputs}_few_steps", outputs, "")
    pipe, exact = SteeredPipeline.from_pretrained(target), SteeredPipeline.from_pretrained(legs["few"])
    for steps in (4, 2):
        made, wanted = (
            torch.stack(
                [frame.image for frame in own.stream("a red circle moves left", 6, steps=steps, seed=3)]
            )
            for own in (pipe, exact)
        )
        assert made.shape == (6, 64, 64, 3) and (made.int() - wanted.int()).abs().max() <= 3
    assert len(list(target.glob("training_log*.jsonl"))) == 2, "its own and its teacher's"
    files = demo_shapes.run(tmp_path / "demo", target)
    assert read_video(files.video).shape == (demo_shapes.FRAMES, 2 * 64 * 3, 3 * 64 * 3, 3)
    assert files.animation.stat().st_size and files.sheet.stat().st_size
    bundle(legs["second"], target)
    assert json.loads((target / "training_config.json").read_text())["init"] == f"{outputs}_first"
    (target / "training_log_blocks.jsonl").write_text("put there")
    bundle(legs["first"], target)
    assert sorted(log.name for log in target.glob("training_log*.jsonl")) == [
        "training_log.jsonl",
        "training_log_blocks.jsonl",
    ]
