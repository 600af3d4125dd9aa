# SPDX-License-Identifier: Apache-2.0
"""Hostile files of every kind that the package reads, pictures and films aside (`media` has those).

python -m tools.fuzz.files --files 10000 --seed 1
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import random
import shutil
import struct
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ardiff_engine import bench_table
from ardiff_engine.data.config import DataConfig
from ardiff_engine.data.latent_files import LatentFiles, read_latents
from ardiff_engine.errors import CheckpointError
from ardiff_engine.evaluation.__main__ import trained_digits
from ardiff_engine.training.checkpoint import CHECKSUM_FILE, _fingerprint, newest_checkpoint, save_checkpoint
from ardiff_engine.training.config import (
    EncodeConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
    VaeTrainConfig,
)
from ardiff_engine.training.log import read_log
from ardiff_engine.training.log_config import LogConfig
from ardiff_engine.training.loop import TrainingLoop
from ardiff_engine.training.optimizer import Optimizer
from ardiff_engine.training.read_config import read_config, to_dict
from ardiff_engine.weights import load_model
from ardiff_engine.weights.convert import WRITTEN_BYTES, WRITTEN_FACTOR, check_written
from ardiff_engine.weights.convert_worker import reported
from ardiff_engine.weights.scheduler_file import read_schedule
from tools.fuzz import pickles, weight_files
from tools.fuzz.mutate import mutated
from tools.fuzz.plain_values import json_text, toml_text
from tools.fuzz.runner import Kind, main
from tools.fuzz.traps import Traps
from tools.fuzz.weight_files import SMALL_MODELS, good_folder

SCHEDULE = {
    "schedule": {"kind": "sqrt_linear", "beta_start": 1e-4, "beta_end": 2e-2, "num_timesteps": 100},
    "prediction": "x0",
}
RUN = RunConfig(output="out", steps=10)


@dataclass(frozen=True)
class Config:
    """What a trainer's config has in common with every other one."""

    run: RunConfig = RUN
    optimizer: OptimizerConfig = OptimizerConfig()
    log: LogConfig = LogConfig()
    list: tuple[int, ...] = (1, 2)


STATE = {"settings": to_dict(Config()), "processes": 1, "averages": {"loss": [2.0, 4]}, "ema_updates": 0}
ROW = {"op": "linear", "shape": "2x2", "threads": 1, "opponent": "torch", "seconds": 1e-3}
RECORD = {
    "machine": {
        "cpu": "a cpu",
        "cores": 2,
        "isa": "avx2",
        "compiler": "gcc",
        "torch": "2",
        "platform": "linux",
    },
    "date": "2030-01-01",
    "commit": "0",
    "rows": [ROW | {"opponent_seconds": 2e-3, "ratio": 2.0, "bar": 1.0, "share": 0.5, "share_bar": 0.1}],
}


@functools.cache
def good_run() -> Path:
    """The folder of a training run, written once per process."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-good-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    module = torch.nn.Linear(2, 2)
    optimizer = Optimizer(module, OptimizerConfig(), 10)
    tensors = {"model": module.state_dict(), "model_optimizer": optimizer.tensors()}
    for step in (3, 6):
        save_checkpoint(folder / "checkpoints", step, tensors, STATE, 2)
    return folder


def pickled(rng: random.Random, folder: Path, traps: Traps) -> Path:
    path = folder / "given.pt"
    pickles.write(rng, path)
    return path


def read_pickled(path: Path) -> None:
    """What the process that `convert` starts does, in this process, which has limits of its own."""
    most = WRITTEN_BYTES + WRITTEN_FACTOR * path.stat().st_size
    report = reported(str(path), "out.safetensors", most)
    if "error" in report:
        raise CheckpointError(f"{path}: {report['error']}")
    check_written(path, Path("out.safetensors"))


# -------------------------------------------------------------------------------------- JSON, TOML and others


def json_file(name: str, values: Any, rng: random.Random, folder: Path, traps: Traps) -> Path:
    path = folder / name
    path.write_bytes(json_text(values, rng))
    return path


def trained(rng: random.Random, folder: Path, traps: Traps) -> Path:
    digits = {
        "canvas": 32,
        "digit_size": 14,
        "digits": 1,
        "min_speed": 1.0,
        "max_speed": 2.5,
        "split": "train",
    }
    json_file("training_config.json", {"data": {"digits": digits}, "run": {}}, rng, folder, traps)
    return folder


def toml_file(kind: type[Any], rng: random.Random, folder: Path, traps: Traps) -> Path:
    path = folder / "given.toml"
    path.write_bytes(toml_text(good_config(kind), rng))
    return path


@functools.cache
def good_config(kind: type[Any]) -> dict[str, Any]:
    """Every setting of a command with its default."""
    if kind is EncodeConfig:
        return {"vae": "v", "videos": "x", "output": "o", "num_frames": 16, "stride": 16, "device": "cpu"}
    whole = (
        kind(run=RUN, model=SMALL_MODELS["titok"].config)
        if kind is VaeTrainConfig
        else kind(run=RUN, model=SMALL_MODELS["ar"].config, data=DataConfig(num_frames=2), vae="v")
    )
    return _without_none(to_dict(whole))


def _without_none(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_none(value) for key, value in values.items() if value is not None}
    return list(values) if isinstance(values, tuple) else values


def latents(rng: random.Random, folder: Path, traps: Traps) -> Path:
    path = folder / rng.choice(("a.npy", "a_classid3_.npy", f"a_classid{10**30}_.npy"))
    array = np.ones((3, 4, 1, 2), dtype=rng.choice(("<f4", "<f8", "<f2", ">f4", "<i4", "<c8")))
    if rng.random() < 0.4:
        array[0, :, 0, 0] = rng.choice((np.nan, np.inf, 1e30, 0, 1e-30)) if array.dtype.kind == "f" else 0
    np.save(path, array)
    data = path.read_bytes()
    how = rng.randrange(4)
    if how == 0:
        path.write_bytes(mutated(data, rng))
    elif how == 1:
        shape = rng.choice(
            ("(10**12,4,1,2)", "(1000000000000, 4, 1, 2)", "(-3, 4, 1, -2)", "()", "(3,4,1,2,1)", "3")
        )
        path.write_bytes(data.replace(b"(3, 4, 1, 2)", shape.encode()))
    elif how == 2:
        text = (
            rng.choice((b"(" * 9000, b"{" * 9000, b"-" * 9000 + b"1", b"__import__('os')", b"{}" * 4000))
            + b"\n"
        )
        path.write_bytes(data[:8] + struct.pack("<H", len(text)) + text + data[128:])
    return path


def read_latent_file(path: Path) -> None:
    read_latents(path)
    LatentFiles(path.parent, 2, 0).latents(range(2))


def run_folder(rng: random.Random, folder: Path, traps: Traps) -> Path:
    """A training run with one or both checkpoints damaged, sometimes with checksums that fit again."""
    path = folder / "run"
    shutil.copytree(good_run(), path)
    for checkpoint in sorted((path / "checkpoints").iterdir())[rng.randrange(2) :]:
        victim = rng.choice(sorted(checkpoint.iterdir()))
        data = victim.read_bytes()
        how = rng.randrange(5)
        if how == 0:
            victim.unlink()
            if rng.random() < 0.5:
                os.mkfifo(victim)
        elif how == 1 and victim.suffix == ".json":
            victim.write_bytes(json_text(json.loads(data), rng))
        elif how == 2:
            victim.write_bytes(data[: rng.randrange(len(data))])
        else:
            victim.write_bytes(mutated(data, rng))
        if rng.random() < 0.5 and (checkpoint / CHECKSUM_FILE).is_file():
            others = [
                file for file in sorted(checkpoint.iterdir()) if file.is_file() and file.name != CHECKSUM_FILE
            ]
            found = {file.name: _fingerprint(file) for file in others}
            (checkpoint / CHECKSUM_FILE).write_text(json.dumps(found))
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(6)]
    lines.insert(rng.randrange(6), json_text({"step": 1, "loss": 2.0}, rng).decode("utf-8", "replace"))
    (path / "training_log.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="replace")
    return path


def read_run(path: Path) -> None:
    newest_checkpoint(path / "checkpoints")
    module = torch.nn.Linear(2, 2)
    optimizer = Optimizer(module, OptimizerConfig(), 10)
    run = RunConfig(output=str(path), steps=10)
    TrainingLoop(run, {"model": module}, {"model": optimizer}, None, Config(run))._start(True)
    read_log(path / "training_log.jsonl")


def read_record(path: Path) -> None:
    found = bench_table.read(path)
    bench_table.markdown(found)
    bench_table.comparison(found, found)


def _config_kind(kind: type[Any]) -> Kind:
    return Kind(
        f"toml-{kind.__name__}", functools.partial(toml_file, kind), functools.partial(read_config, kind)
    )


KINDS = [
    *weight_files.KINDS,
    Kind("pt", pickled, read_pickled, share=2),
    Kind("scheduler", functools.partial(json_file, "scheduler.json", SCHEDULE), read_schedule),
    Kind("trained", trained, lambda path: trained_digits(str(path)), share=0.5),
    *map(_config_kind, (TrainConfig, VaeTrainConfig, EncodeConfig)),
    Kind("latents", latents, read_latent_file),
    Kind("run", run_folder, read_run),
    Kind("record", functools.partial(json_file, "bench.json", RECORD), read_record, share=0.5),
]


def warm_up() -> None:
    """What PyTorch imports and writes at first use is not the doing of a hostile file."""
    for kind in SMALL_MODELS:
        load_model(good_folder(kind))
    read_run(good_run())


if __name__ == "__main__":
    warm_up()
    sys.exit(main(KINDS))
