# SPDX-License-Identifier: Apache-2.0
"""Configs that come with the package are complete and fit each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from ardiff_engine import cli
from ardiff_engine.errors import ConfigError
from ardiff_engine.training.frame_vae_trainer import FrameVaeTrainConfig
from ardiff_engine.training.read_config import read_config
from ardiff_engine.training.templates import write_template
from ardiff_engine.training.wan_trainer import WanTrainConfig


def test_the_stages_of_small_videos_fit_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--template", "small-videos"]) == 0
    stages = sorted((tmp_path / "small-videos").iterdir())
    told = capsys.readouterr().out
    assert len(stages) == 2 and all(f"\n    ardiff train{n} small-videos/{path.name}" in told
        for n, path in zip(("-vae", ""), stages, strict=True))  # fmt: skip
    assert "./videos" in told and "walk.txt" in told
    vae, train = read_config(FrameVaeTrainConfig, stages[0]), read_config(WanTrainConfig, stages[1])
    assert train.vae == f"{vae.run.output}/vae" and vae.model.image_size == 64
    assert train.model.channels == train.model.out_channels == vae.model.channels
    seen = [(data.source, data.path, data.held_out, data.fps) for data in (vae.data, train.data)]
    assert seen[0] == seen[1] and not train.data.num_frames % train.loss.block


def test_nothing_is_overwritten_and_names_are_known(tmp_path: Path) -> None:
    write_template("small-videos", tmp_path / "mine")
    with pytest.raises(ConfigError, match="already"):
        write_template("small-videos", tmp_path / "mine")
    with pytest.raises(ConfigError, match="small-videos"):
        write_template("large", tmp_path / "other")


def test_a_config_or_a_template_is_needed() -> None:
    assert cli.main(["train"]) == 2
