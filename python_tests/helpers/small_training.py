# SPDX-License-Identifier: Apache-2.0
"""A small run of stage 2."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from ardiff_engine.data.latent_files import latent_file_name, write_latents
from ardiff_engine.training.checkpoint import checkpoints
from ardiff_engine.training.config import TrainConfig
from ardiff_engine.training.read_config import read_config

CONFIG = """
[run]
output = "{output}"
steps = {steps}
batch = 2
accumulate = 2
threads = 1
log_every = 1
validate_every = 4
validation_clips = 2
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
[log]
gemm_share = false
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
