# SPDX-License-Identifier: Apache-2.0
"""What a run shows of itself: pictures of samples, TensorBoard, its share of the machine's rate. None of it
changes what is trained."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_training import assert_same_weights, write_config
from PIL import Image
from test_wan_trainer import config  # noqa: F401

from ardiff_engine.errors import ConfigError
from ardiff_engine.models import TiTok, TiTokConfig
from ardiff_engine.pipeline.files import CONFIG_FILE
from ardiff_engine.training import run_train
from ardiff_engine.training.checkpoint import checkpoints, load_checkpoint
from ardiff_engine.training.config import TrainConfig, VaeTrainConfig
from ardiff_engine.training.log import read_log
from ardiff_engine.training.read_config import read_config
from ardiff_engine.training.throughput import SPEED
from ardiff_engine.training.trainer import Trainer
from ardiff_engine.weights import load_model, save_model

TOLD = [
    "log.gemm_share=true",
    "log.tensorboard=true",
    "log.samples_every=2",
    "log.samples=2",
    "log.sample_steps=2",
]
SHORT = ["run.steps=4", "run.checkpoint_every=2", "run.log_every=1", "run.validate_every=0"]


def with_vae(folder: Path) -> list[str]:
    torch.manual_seed(0)
    settings = TiTokConfig(
        image_size=16, patch_size=8, encoder_width=16, encoder_layers=1, encoder_heads=2, decoder_width=16,
        decoder_layers=1, decoder_heads=2, num_latent_tokens=4, token_size=4, codebook_logits=8,
        quantized_channels=8, hidden_channels=8, channel_multipliers=(1, 1, 1, 1), res_blocks=1,
        norm_groups=4,
    )  # fmt: skip
    vae = TiTok(settings).eval()
    for weight in vae.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    save_model(vae, folder / "stage1")
    return [f"vae={json.dumps(str(folder / 'stage1'))}"]


def lines(folder: Path) -> list[dict[str, object]]:
    found = read_log(folder / "training_log.jsonl")
    return [{name: value for name, value in entry.items() if name not in SPEED} for entry in found]


def check_pictures(folder: Path, rows: int) -> None:
    names = sorted(path.name for path in (folder / "samples").iterdir())
    assert names == ["step-00000002.png", "step-00000004.png"]
    first, last = (np.asarray(Image.open(folder / "samples" / name).convert("RGB")) for name in names)
    assert first.shape == last.shape and first.shape[0] > 16 * rows and not np.array_equal(first, last)


def test_what_a_run_tells_changes_no_bit_of_it(tmp_path: Path) -> None:
    vae, path = with_vae(tmp_path), write_config(tmp_path)
    quiet = run_train(path, [*SHORT, *vae])
    told = run_train(path, [*SHORT, *vae, *TOLD, f"run.output={json.dumps(str(tmp_path / 'told'))}"])
    assert_same_weights(quiet, told)
    assert lines(quiet) == lines(told)
    assert all(0 < entry["gemm_share"] < 2 for entry in read_log(told / "training_log.jsonl"))
    assert all("gemm_share" not in entry for entry in read_log(quiet / "training_log.jsonl"))
    check_pictures(told, rows=4)
    assert not (quiet / "samples").exists() and not (quiet / "tensorboard").exists()


def test_tensorboard_has_the_log_once_after_a_resume(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path, board = write_config(tmp_path), ["log.tensorboard=true", *SHORT]
    folder = run_train(path, [*board, "optimizer.schedule=constant"])
    run_train(path, [*board, "run.steps=6", "optimizer.schedule=constant"], resume=True)
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    expected = [entry["loss"] for entry in read_log(folder / "training_log.jsonl")]
    assert [step for step, _ in found] == list(range(1, 7))
    assert [value for _, value in found] == pytest.approx(expected, abs=2e-6)


def test_a_wan_run_tells_too(config: Path, tmp_path: Path) -> None:  # noqa: F811
    quiet = run_train(config, SHORT)
    told = run_train(
        config, [*SHORT, *TOLD[:1], *TOLD[2:], f"run.output={json.dumps(str(tmp_path / 'told'))}"]
    )
    states = [load_checkpoint(checkpoints(folder / "checkpoints")[-1]).tensors for folder in (quiet, told)]
    for group, tensors in states[0].items():
        assert all(torch.equal(value, states[1][group][name]) for name, value in tensors.items()), group
    assert lines(quiet) == lines(told)
    check_pictures(told, rows=4)


def test_the_log_may_be_told_otherwise_on_resume(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    run_train(path, [*SHORT, "optimizer.schedule=constant"])
    folder = run_train(path, [*SHORT, "run.steps=5", "optimizer.schedule=constant", TOLD[0]], resume=True)
    assert "gemm_share" in read_log(folder / "training_log.jsonl")[-1]


def test_the_best_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_config(tmp_path)
    every = ["run.validate_every=1", "run.checkpoint_every=1", "run.keep=9", "log.keep_best=true"]
    changes = [*every, "optimizer.schedule=constant"]
    losses = iter([0.5, 0.3, 0.4, math.nan, 0.35, 0.2])
    monkeypatch.setattr(Trainer, "validate", lambda self: {"loss": next(losses)})

    def step_of_best() -> list[int]:
        found = load_model(tmp_path / "run" / "best" / "transformer").state_dict()
        averages = {
            step: load_checkpoint(folder).tensors["ema"]
            for step, folder in enumerate(checkpoints(tmp_path / "run" / "checkpoints"), 1)
        }
        return [
            step
            for step, average in averages.items()
            if all(torch.equal(found[name], value) for name, value in average.items())
        ]

    run_train(path, [*changes, "run.steps=4"])
    assert step_of_best() == [2]
    run_train(path, [*changes, "run.steps=5"], resume=True)
    assert step_of_best() == [2], "the log tells a resumed run how good it was"
    folder = run_train(path, [*changes, "run.steps=6"], resume=True)
    assert step_of_best() == [6]
    assert sorted(path.name for path in (folder / "best").iterdir()) == sorted(
        path.name for path in folder.iterdir() if path.name in ("transformer", "scheduler.json", CONFIG_FILE)
    )


def test_the_best_weights_are_kept_from_a_resume_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_config(tmp_path)
    changes = ["run.validate_every=1", "run.checkpoint_every=1", "optimizer.schedule=constant"]
    losses = iter([0.3, math.nan, 0.5, 0.4])
    monkeypatch.setattr(Trainer, "validate", lambda self: {"loss": next(losses)})
    folder = run_train(path, [*changes, "run.steps=1"])
    changes.append("log.keep_best=true")
    run_train(path, [*changes, "run.steps=2"], resume=True)
    assert not (folder / "best").exists()
    run_train(path, [*changes, "run.steps=3"], resume=True)
    first = load_model(folder / "best" / "transformer").state_dict()
    run_train(path, [*changes, "run.steps=4"], resume=True)
    kept = load_model(folder / "best" / "transformer").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in first.items())


def test_what_cannot_be_told_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"ardiff-engine\[tensorboard\]"):
        Trainer(read_config(TrainConfig, path, ["log.tensorboard=true"]))
    with pytest.raises(ConfigError, match="validate_every"):
        Trainer(read_config(TrainConfig, path, ["log.keep_best=true", "run.validate_every=0"]))
    with pytest.raises(ConfigError, match="vae"):
        read_config(TrainConfig, path, ["log.samples_every=5"])
    with pytest.raises(ConfigError, match="sample_steps"):
        read_config(TrainConfig, path, ["log.sample_steps=0"])
    stage_one = Path(__file__).parents[1] / "configs" / "videos_vae.toml"
    with pytest.raises(ConfigError, match="samples_every"):
        read_config(VaeTrainConfig, stage_one, ["log.samples_every=5"])
    with pytest.raises(ConfigError, match="keep_best"):
        read_config(VaeTrainConfig, stage_one, ["log.keep_best=true"])
    assert not (tmp_path / "run").exists()
