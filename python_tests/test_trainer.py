# SPDX-License-Identifier: Apache-2.0
"""Stage 2: learns, exports a pipeline folder, survives SIGKILL and SIGTERM bit for bit."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ardiff_engine.data.latent_files import latent_file_name, write_latents
from ardiff_engine.errors import CheckpointError, ConfigError, DataError, NumericalError
from ardiff_engine.settings import build
from ardiff_engine.training.checkpoint import checkpoints
from ardiff_engine.training.config import DiffusionLossConfig, TrainConfig
from ardiff_engine.training.log import read_log
from ardiff_engine.training.loss_curve import draw_loss_curve
from ardiff_engine.training.read_config import read_config
from ardiff_engine.training.timesteps import KNOWN_TIMESTEPS, training_timesteps
from ardiff_engine.training.trainer import Trainer, train
from ardiff_engine.weights import load_model

CONFIG = """
[run]
output = "{output}"
steps = {steps}
batch = 2
accumulate = 2
threads = 1
log_every = 1
validate_every = 4
validation_batches = 1
checkpoint_every = 3
[data]
source = "latents"
path = "{latents}"
num_frames = 4
held_out = 1
[model]
num_frames = 4
tokens_per_frame = 4
channels = 4
width = 16
depth = 2
heads = 2
context_tokens = 2
context_dim = 8
num_classes = 3
[optimizer]
lr = 0.01
schedule = "cosine"
warmup = 2
[loss]
null_probability = 0.3
known_probability = 0.5
[schedule]
num_timesteps = 40
[ema]
decay = 0.9
"""


def write_config(folder: Path, output: str = "run", steps: int = 12) -> Path:
    latents = folder / "latents"
    if not latents.exists():
        latents.mkdir()
        generator = torch.Generator().manual_seed(0)
        for index in range(4):
            z = torch.randn(4, 1, 4, generator=generator).expand(6, 4, 1, 4)
            write_latents(latents / latent_file_name(index, "v", class_id=index % 3), z)
    path = folder / f"{output}.toml"
    path.write_text(CONFIG.format(output=folder / output, latents=latents, steps=steps))
    return path


def load(path: Path) -> TrainConfig:
    return read_config(TrainConfig, path)


def assert_same_weights(a: Path, b: Path) -> None:
    for name in ("model", "ema", "model_optimizer"):
        x, y = (
            load_file(checkpoints(folder / "checkpoints")[-1] / f"{name}.safetensors") for folder in (a, b)
        )
        assert x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x), name


def test_learns_and_trains_its_context(tmp_path: Path) -> None:
    trainer = Trainer(load(write_config(tmp_path, steps=60)))
    before = trainer.model.context_embedding.detach().clone()
    losses = [trainer.step(step)["loss"] for step in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert not torch.equal(trainer.model.context_embedding, before)
    assert "context_embedding/exp_avg" in trainer.optimizer.tensors()


def test_learns_on_groups_of_tokens(tmp_path: Path) -> None:
    changes = ["model.tokens_per_frame=2", "model.channels=8"]
    trainer = Trainer(read_config(TrainConfig, write_config(tmp_path, steps=60), changes))
    losses = [trainer.step(step)["loss"] for step in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_loss_is_the_stated_mean_square(tmp_path: Path, prediction: str) -> None:
    config = load(write_config(tmp_path))
    config = build(
        TrainConfig,
        json.loads(json.dumps(_plain(config, {"prediction": prediction, "null_probability": 0.0}))),
        "",
    )
    trainer = Trainer(config)
    samples = range(6, 9)
    got = trainer.loss(trainer.source, samples, seed=5)
    x0, classes = trainer.source.latents(samples)
    t = training_timesteps(samples, 4, 40, config.loss, 5)
    from ardiff_engine.diffusion.noise import PURPOSE_TRAIN, noise_keys
    from ardiff_engine.ops import philox_normal

    keys = noise_keys(5, [s for s in samples for _ in range(4)], list(range(4)) * 3, PURPOSE_TRAIN, 0)
    eps = philox_normal(keys, 16).reshape(x0.shape)
    signal_, sigma = (
        value.float()[..., None, None] for value in (trainer.schedule.signal(t), trainer.schedule.sigma(t))
    )
    target = {"x0": x0, "eps": eps, "v": signal_ * eps - sigma * x0}[prediction]
    output = trainer.model.forward_clip(signal_ * x0 + sigma * eps, t, trainer.model.context(classes))
    assert torch.allclose(got, (output - target).square().mean(), rtol=1e-5)


def _plain(config: TrainConfig, loss: dict[str, object]) -> dict[str, object]:
    from ardiff_engine.training.read_config import to_dict

    def drop(value: object) -> object:
        return {k: drop(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    values = drop(to_dict(config))
    assert isinstance(values, dict)
    return values | {"loss": values["loss"] | loss}


def test_pipeline_folder_log_and_curve(tmp_path: Path) -> None:
    folder = train(load(write_config(tmp_path)))
    model = load_model(folder / "transformer")
    ema = load_file(folder / "checkpoints" / "step-00000012" / "ema.safetensors")
    assert all(torch.equal(value, ema[name]) for name, value in model.named_parameters())
    assert json.loads((folder / "scheduler.json").read_text())["prediction"] == "x0"
    log = read_log(folder / "training_log.jsonl")
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, 13))
    assert [entry["step"] for entry in log if "validation_loss" in entry] == [4, 8, 12]
    assert (folder / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(checkpoints(folder / "checkpoints")) == 2


SCRIPT = """
import sys
from ardiff_engine.training import run_train
run_train(sys.argv[1], sys.argv[3:], resume=sys.argv[2] == "1")
"""


def _process(config: Path, resume: bool, *overrides: str) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(config), str(int(resume)), *overrides],
        env=environment,
        stderr=subprocess.DEVNULL,
    )


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, "training ended too early or hangs"
        time.sleep(0.002)


@pytest.mark.slow
def test_sigkill_then_resume_is_bitwise_equal(tmp_path: Path) -> None:
    steps = 60
    whole = train(load(write_config(tmp_path, "whole", steps)))
    config = write_config(tmp_path, "killed", steps)
    process = _process(config, False)
    _wait_for(tmp_path / "killed" / "checkpoints" / "step-00000006", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    interrupted = checkpoints(tmp_path / "killed" / "checkpoints")[-1].name
    assert interrupted < f"step-{steps:08d}"
    assert _process(config, True).wait(timeout=120) == 0
    assert_same_weights(whole, tmp_path / "killed")
    logs = [
        [(e["step"], e.get("loss"), e.get("validation_loss")) for e in read_log(f / "training_log.jsonl")]
        for f in (whole, tmp_path / "killed")
    ]
    assert logs[0] == logs[1]


def test_sigterm_saves_and_leaves_cleanly(tmp_path: Path) -> None:
    config = write_config(tmp_path, steps=100_000)
    process = _process(config, False, "run.checkpoint_every=0", "run.validate_every=0")
    _wait_for(tmp_path / "run" / "training_log.jsonl", process)
    while len(read_log(tmp_path / "run" / "training_log.jsonl")) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert len(checkpoints(tmp_path / "run" / "checkpoints")) == 1
    assert (tmp_path / "run" / "transformer" / "model.safetensors").exists()


def test_a_used_folder_is_not_overwritten_and_settings_may_not_change(tmp_path: Path) -> None:
    config = write_config(tmp_path, steps=4)
    train(load(config))
    with pytest.raises(ConfigError, match="resume"):
        train(load(config))
    with pytest.raises(CheckpointError, match="optimizer"):
        train(read_config(TrainConfig, config, ["optimizer.lr=0.5"]), resume=True)
    folder = train(read_config(TrainConfig, config, ["run.steps=6"]), resume=True)
    assert checkpoints(folder / "checkpoints")[-1].name == "step-00000006"


def test_damaged_checkpoints_stop_a_resumed_run_and_a_new_one(tmp_path: Path) -> None:
    config = load(write_config(tmp_path, steps=2))
    folder = train(config)
    for path in checkpoints(folder / "checkpoints"):
        (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="start anew"):
        train(config, resume=True)
    with pytest.raises(ConfigError, match="--resume"):
        train(config)


def test_a_model_with_classes_needs_data_with_classes(tmp_path: Path) -> None:
    config = load(write_config(tmp_path, steps=2))
    for path in (tmp_path / "latents").iterdir():
        path.rename(path.with_name(path.name.replace("_classid", "-")))
    with pytest.raises(DataError, match="classid"):
        train(config)


def test_latents_that_do_not_fit_the_model(tmp_path: Path) -> None:
    config = write_config(tmp_path, steps=2)
    with pytest.raises(ConfigError, match="8 tokens x 4 channels.*4 x 4"):
        Trainer(read_config(TrainConfig, config, ["model.tokens_per_frame=8"]))


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99"])
def test_a_device_that_is_not_there(tmp_path: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"device: got '{device}'"):
        Trainer(read_config(TrainConfig, write_config(tmp_path), [f"run.device={device}"]))


def test_resume_without_checkpoint_starts(tmp_path: Path) -> None:
    folder = train(load(write_config(tmp_path, steps=2)), resume=True)
    assert (folder / "transformer").exists()


def test_non_finite_gradients_stop_before_the_weights_are_touched(tmp_path: Path) -> None:
    trainer = Trainer(load(write_config(tmp_path)))
    with torch.no_grad():
        trainer.model.x_embedder.bias.fill_(float("nan"))
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    with pytest.raises(NumericalError, match="gradient"):
        trainer.step(0)
    assert all(torch.equal(before[n], p) for n, p in trainer.model.named_parameters() if "bias" not in n)


def test_known_frames_share_one_small_timestep() -> None:
    loss = DiffusionLossConfig(known_probability=1.0)
    t = training_timesteps(range(400), 8, 1000, loss, seed=1)
    known = (t == t[:, :1]).sum(dim=1)
    assert (t[:, 0] < KNOWN_TIMESTEPS).all() and set(known.tolist()) >= set(range(1, 8))
    assert (t[:, 1:] >= t[:, :-1]).all()
    none = training_timesteps(range(400), 8, 1000, DiffusionLossConfig(), seed=1)
    assert (none[:, 0] >= KNOWN_TIMESTEPS).any()


def test_timesteps_of_a_sample_do_not_depend_on_its_batch() -> None:
    loss = DiffusionLossConfig(known_probability=0.5)
    together = training_timesteps(range(10, 20), 6, 1000, loss, seed=3)
    assert torch.equal(training_timesteps(range(14, 16), 6, 1000, loss, seed=3), together[4:6])


def test_curve_needs_two_points(tmp_path: Path) -> None:
    draw_loss_curve([{"step": 1, "loss": 1.0}], tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
    draw_loss_curve([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").exists()


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    alone = train(read_config(TrainConfig, write_config(tmp_path, "alone", 3), ["run.batch=4"]))
    config = write_config(tmp_path, "pair", 3)
    root = Path(__file__).parents[1]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-c", SCRIPT, str(config), "0"]
    pair = [subprocess.Popen(command, env=environment | {"RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(timeout=120) for process in pair] == [0, 0]
    a, b = (load_file(folder / "transformer" / "model.safetensors") for folder in (alone, tmp_path / "pair"))
    for name, value in a.items():
        assert torch.allclose(value, b[name], atol=2e-4), name
    log = read_log(tmp_path / "pair" / "training_log.jsonl")
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3]
