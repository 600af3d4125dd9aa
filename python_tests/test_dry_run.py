# SPDX-License-Identifier: Apache-2.0
"""What a run takes is said before it begins, and what cannot fit is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers.small_training import write_config
from torch import nn

from ardiff_engine import cli
from ardiff_engine.errors import ConfigError
from ardiff_engine.training import dry_run as module
from ardiff_engine.training.config import RunConfig, TrainConfig
from ardiff_engine.training.dry_run import check_room, dry_run
from ardiff_engine.training.log import read_log
from ardiff_engine.training.read_config import read_config
from ardiff_engine.training.throughput import Throughput
from ardiff_engine.training.trainer import Trainer, train


def test_it_writes_nothing_and_says_memory_steps_and_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, steps=500)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["train", str(config), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert re.search(r"memory: \d.* GiB at most", said) and "steps: 500" in said and "time:" in said


def test_the_figures_are_those_of_the_run(tmp_path: Path) -> None:
    trainer = Trainer(read_config(TrainConfig, write_config(tmp_path)))
    found = dry_run(trainer)
    assert found.parameters == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert found.peak > 4 * 4 * found.parameters and found.seconds > 0
    assert 0 < found.gemm_share < 1


def test_products_and_their_gradients_are_counted() -> None:
    layer, x = nn.Linear(8, 16, bias=False), torch.ones(4, 8, requires_grad=True)
    throughput = Throughput(RunConfig("unused", 1, batch=4, accumulate=2))
    throughput.counted(lambda: layer(x).sum().backward())
    assert throughput.flops == 3 * 2 * 4 * 8 * 16
    metrics = throughput.metrics(steps=6, seconds=2.0)
    assert metrics["steps_per_second"] == 3 and metrics["clips_per_second"] == 24
    assert metrics["gemm_share"] == pytest.approx(throughput.flops * 3 / throughput.gemm_rate)


def test_speed_is_in_the_log(tmp_path: Path) -> None:
    folder = train(read_config(TrainConfig, write_config(tmp_path, steps=1)))
    entry = read_log(folder / "training_log.jsonl")[0]
    assert entry["clips_per_second"] == pytest.approx(4 * entry["steps_per_second"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_model_that_cannot_fit_is_refused_unbuilt(averaged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def make() -> nn.Module:
        built.append(nn.Linear(1000, 1000, bias=False))
        return built[-1]

    run, needed = RunConfig("unused", 1), 4 * 1000 * 1000 * (4 + averaged)
    monkeypatch.setattr(module, "free_memory", lambda device: needed)
    check_room(make, run, averaged=averaged)
    with pytest.raises(ConfigError, match="batch"):
        check_room(make, run, averaged=averaged, kept=1)
    monkeypatch.setattr(module, "free_memory", lambda device: needed - 1)
    with pytest.raises(ConfigError, match="free"):
        check_room(make, run, averaged=averaged)
    assert all(layer.weight.is_meta for layer in built)


def test_a_config_that_asks_for_more_memory_than_there_is(tmp_path: Path) -> None:
    huge = ["model.width=65536", "model.depth=64", "model.heads=512"]
    with pytest.raises(ConfigError, match="free"):
        Trainer(read_config(TrainConfig, write_config(tmp_path), huge))
    assert not (tmp_path / "run").exists()
