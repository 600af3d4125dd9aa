# SPDX-License-Identifier: Apache-2.0
"""Kinds of models by name: a network of another project is saved and loaded like the project's own."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ardiff_engine.errors import CheckpointError, ConfigError
from ardiff_engine.models.registry import Kind, kind_named, kinds, register
from ardiff_engine.weights import load_model, save_model


@dataclass(frozen=True)
class LineConfig:
    width: int = 3

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Line(nn.Module):
    def __init__(self, config: LineConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.rand(config.width))


@pytest.fixture(autouse=True)
def line(monkeypatch):
    monkeypatch.setattr("ardiff_engine.models.registry._KINDS", {})
    kind = Kind("line", LineConfig, Line)
    register(kind)
    return kind


def test_a_foreign_kind_comes_back(tmp_path):
    model = Line(LineConfig(5))
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, Line) and again.config == model.config
    assert torch.equal(again.weight, model.weight)


def test_shards_of_a_folder(tmp_path):
    save_model(Line(LineConfig(2)), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    save_file({"weight": torch.tensor([1.0, 2.0])}, tmp_path / "one.safetensors")
    index = {"weight_map": {"weight": "one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_model(tmp_path).weight.tolist() == [1, 2]


def test_names(line, tmp_path):
    register(line)
    assert kinds() == ["line"] and kind_named("line") is line
    with pytest.raises(ConfigError, match="line"):
        register(Kind("line", dict, Line))
    with pytest.raises(ConfigError, match="registered"):
        save_model(nn.Linear(2, 2), tmp_path)
    for name in ("curve", ["line"], None):
        with pytest.raises(ConfigError, match="line"):
            kind_named(name)
    save_model(Line(LineConfig()), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "curve"}))
    with pytest.raises(CheckpointError, match="curve"):
        load_model(tmp_path)
