# SPDX-License-Identifier: Apache-2.0
"""TOML settings: every config in configs/ is valid, unknown names are pointed out, overrides come last."""

from __future__ import annotations

from pathlib import Path

import pytest

from ardiff_engine.errors import ConfigError
from ardiff_engine.training.config import EncodeConfig, TrainConfig, VaeTrainConfig
from ardiff_engine.training.frame_vae_trainer import FrameVaeTrainConfig
from ardiff_engine.training.read_config import read_config
from ardiff_engine.training.wan_trainer import WanTrainConfig

CONFIGS = Path(__file__).parents[1] / "configs"
KINDS = {"vae": VaeTrainConfig, "encode": EncodeConfig}
OWN = {"moving_shapes_vae": FrameVaeTrainConfig} | {
    f"moving_shapes{leg}": WanTrainConfig for leg in ("", "_first", "_long", "_few_steps")
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    kind = KINDS.get(path.stem.rpartition("_")[2], TrainConfig)
    read_config(OWN.get(path.stem, kind), path)


def test_overrides_win_and_keep_their_type() -> None:
    config = read_config(
        TrainConfig,
        CONFIGS / "moving_digits.toml",
        ["optimizer.lr=0.5", "run.output=/x/y", "data.digits.canvas=48", "run.steps=7"],
    )
    assert (config.optimizer.lr, config.run.output, config.data.digits.canvas, config.run.steps) == (
        0.5,
        "/x/y",
        48,
        7,
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learningrate=1", "optimizer"),
        ("optimizer.warmpu=1", "'optimizer.warmup'"),
        ("modle.width=64", "'model'"),
        ("model.widht=64", "'model.width'"),
        ("data.digits.digit_sizes=3", "'data.digits.digit_size'"),
        ("run.steps=1.5", "a whole number"),
        ("run.steps=true", "a whole number"),
        ("run.steps=0", "expected 1 to"),
        ("run=3", "a table"),
        ("loss.prediction=flux", "'x0'"),
        ("data.digits.digit_size=99", "canvas"),
        ("data.num_frames=17", "at most model.num_frames"),
        ("vae=", "a folder of stage 1"),
        ("nonsense", "section.name=value"),
        ("run.steps.x=1", "table"),
    ],
)
def test_mistakes_are_explained(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(TrainConfig, CONFIGS / "moving_digits.toml", [override])


@pytest.mark.parametrize(
    ("kind", "name", "override", "message"),
    [
        (VaeTrainConfig, "moving_digits_vae", "data.clips=8", r"data\.clips.* stage 1"),
        (FrameVaeTrainConfig, "moving_shapes_vae", "data.clips=8", r"data\.clips.* stage 1"),
        (TrainConfig, "videos", "data.clips=8", r"data\.clips.* 'latents'"),
        (TrainConfig, "moving_digits", "data.fps=8.0", r"data\.fps.* 'moving_digits'"),
        (TrainConfig, "moving_digits", "loss.first_blocks=0.5", r"loss\.first_blocks.* 'own_history' alone"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    kind: type, name: str, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(kind, CONFIGS / f"{name}.toml", [override])


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.toml"):
        read_config(TrainConfig, tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("[run\n")
    with pytest.raises(ConfigError, match="TOML"):
        read_config(TrainConfig, tmp_path / "broken.toml")
    (tmp_path / "short.toml").write_text("vae = 'x'\n")
    with pytest.raises(ConfigError, match="run"):
        read_config(TrainConfig, tmp_path / "short.toml")
