# SPDX-License-Identifier: Apache-2.0
"""docs/training_settings.md names every key of every config of training, with its default."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from ardiff_engine.conditions.captions import CaptionEncoderConfig
from ardiff_engine.data.config import DataConfig
from ardiff_engine.data.moving_digits import MovingDigits
from ardiff_engine.data.moving_shapes import MovingShapes
from ardiff_engine.models.ar_diffusion.config import ARDiffusionConfig
from ardiff_engine.models.frame_vae import FrameVAEConfig
from ardiff_engine.models.titok.config import TiTokConfig
from ardiff_engine.models.wan import WanConfig
from ardiff_engine.training import config
from ardiff_engine.training.distillation import DistillationConfig
from ardiff_engine.training.frame_vae_trainer import FrameVaeLoss, FrameVaeTrainConfig
from ardiff_engine.training.log_config import LogConfig
from ardiff_engine.training.wan_trainer import WanTrainConfig

PAGE = Path(__file__).parents[1] / "docs" / "training_settings.md"
SECTIONS: dict[str, type[Any]] = {
    "[run]": config.RunConfig,
    "[log]": LogConfig,
    "[optimizer]": config.OptimizerConfig,
    "[ema]": config.EmaConfig,
    "[data]": DataConfig,
    "[data.digits]": MovingDigits,
    "[data.shapes]": MovingShapes,
    "`ardiff train`": config.TrainConfig,
    "[model] of `ardiff train`": ARDiffusionConfig,
    "[loss] of `ardiff train`": config.DiffusionLossConfig,
    "[schedule]": config.ScheduleConfig,
    "[distillation]": DistillationConfig,
    '`ardiff train`, network = "wan"': WanTrainConfig,
    "[model] of a Wan transformer": WanConfig,
    "[text]": CaptionEncoderConfig,
    "`ardiff train-vae`": config.VaeTrainConfig,
    "[model] of `ardiff train-vae`": TiTokConfig,
    "[loss] of `ardiff train-vae`": config.VaeLossConfig,
    '`ardiff train-vae`, autoencoder = "frame_vae"': FrameVaeTrainConfig,
    "[model] of a frame_vae": FrameVAEConfig,
    "[loss] of a frame_vae": FrameVaeLoss,
    "`ardiff encode`": config.EncodeConfig,
}


def described() -> dict[str, dict[str, str]]:
    """Section -> key -> default, as the page has them."""
    found: dict[str, dict[str, str]] = {}
    for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\| (.+) \|$", part, re.MULTILINE)
        assert all(what for _, _, what in rows)
        found[part.split("\n")[0]] = {key: default for key, default, _ in rows}
    return found


def default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "needed" if field.default_factory is dataclasses.MISSING else ""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "the usual one" if field.name == "objective" else f'"{value}"'
    return str(list(value)) if isinstance(value, tuple) else str(value)


def test_every_section_is_there() -> None:
    assert list(described()) == list(SECTIONS)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_explained_with_its_default(section: str) -> None:
    fields = dataclasses.fields(SECTIONS[section])
    assert described()[section] == {field.name: default(field) for field in fields}


def test_no_class_of_settings_is_left_out() -> None:
    """A section that a config gets later has to come onto the page."""
    kinds = {value for value in vars(config).values() if isinstance(value, type)}
    settings = {kind for kind in kinds if dataclasses.is_dataclass(kind) and kind.__name__.endswith("Config")}
    assert settings <= set(SECTIONS.values())
