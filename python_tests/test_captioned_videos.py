# SPDX-License-Identifier: Apache-2.0
"""Wan transformers on one's own videos: captions beside the files, and a clip that is learnt by heart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import write_film

from ardiff_engine.data.buckets import Bucket
from ardiff_engine.data.captioned_videos import CaptionedVideos
from ardiff_engine.data.video_folder import VideoFolder
from ardiff_engine.errors import ArdiffError, DataError
from ardiff_engine.models.frame_vae import FrameVAE, FrameVAEConfig
from ardiff_engine.training import run_train_vae
from ardiff_engine.training.read_config import read_config
from ardiff_engine.training.wan_trainer import WanTrainConfig, WanTrainer
from ardiff_engine.weights import save_model

VAE = """
autoencoder = "frame_vae"
[run]
output = "{folder}/stage1"
steps = 120
threads = 1
batch = 8
validate_every = 0
[model]
image_size = 32
channels = 4
width = 32
[data]
source = "videos"
path = "{folder}/videos"
num_frames = 1
[optimizer]
lr = 3e-3
[loss]
latent_noise = 0.0
"""
WAN = """
network = "wan"
vae = "{folder}/stage1/vae"
[run]
output = "{folder}/run"
steps = 250
batch = 4
[data]
source = "videos"
path = "{folder}/videos"
num_frames = 4
held_out = 1
[model]
width = 48
depth = 2
heads = 2
mlp_width = 96
channels = 8
out_channels = 4
text_dim = 16
text_tokens = 64
frequency_dim = 32
actions = 4
[text]
width = 16
[optimizer]
lr = 5e-3
schedule = "cosine"
warmup = 10
[loss]
prediction = "flow"
block = 1
teacher_forcing = 1.0
history_levels = [0, 50]
[ema]
decay = 0.0
"""


def moving_square(count: int) -> np.ndarray:
    frames = np.zeros((count, 32, 32, 3), np.uint8)
    frames[:] = (20, 40, 120)
    for index, frame in enumerate(frames):
        frame[10:22, 2 + 5 * index : 12 + 5 * index] = (230, 210, 40)
    return frames


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(-10 * (one.double() / 255 - other.double() / 255).square().mean().log10())


def folder_with_one_clip(folder: Path) -> Path:
    (folder / "videos").mkdir()
    write_film(folder / "videos" / "walk.mp4", moving_square(4))
    (folder / "videos" / "walk.txt").write_text("a square walks right\n")
    path = folder / "wan.toml"
    path.write_text(WAN.format(folder=folder))
    return path


@pytest.mark.slow
def test_a_small_transformer_learns_one_clip_by_heart(tmp_path: Path) -> None:
    path = folder_with_one_clip(tmp_path)
    (tmp_path / "vae.toml").write_text(VAE.format(folder=tmp_path))
    run_train_vae(tmp_path / "vae.toml")
    trainer = WanTrainer(read_config(WanTrainConfig, path))
    (shown,), (before,) = trainer._samples(1, 8)
    assert psnr(shown, torch.from_numpy(moving_square(4))) > 20
    losses = [trainer.step(step)["loss"] for step in range(250)]
    trainer.trained.eval()
    _, (after,) = trainer._samples(1, 8)
    assert sum(losses[-20:]) < 0.25 * sum(losses[:20])
    # With places beside the latents: rotary positions tell tokens only where they are to each other.
    assert psnr(after, shown) > psnr(before, shown) + 10
    # Each frame is the clip's own, not its mean or its neighbour.
    distances = [[psnr(made, real) for real in shown] for made in after]
    assert [row.index(max(row)) for row in distances] == [0, 1, 2, 3]
    assert all(max(row) > 25 for row in distances)


def untrained(folder: Path) -> FrameVAE:
    torch.manual_seed(0)
    vae = FrameVAE(FrameVAEConfig(image_size=32, channels=4, width=8)).eval()
    save_model(vae, folder / "stage1" / "vae")
    return vae


def test_captions_lie_beside_the_files(tmp_path: Path) -> None:
    folder_with_one_clip(tmp_path)
    write_film(tmp_path / "videos" / "without.mp4", moving_square(4))
    source = CaptionedVideos(
        VideoFolder(tmp_path / "videos", [Bucket(32, 32, 4)], held_out=0), untrained(tmp_path)
    )
    clips = source.clips(range(12))
    assert set(clips.captions) == {"a square walks right", ""} == set(source.captions)
    assert clips.latents.shape == (12, 4, 4, 4, 4) and not clips.actions.any()
    again = source.clips([7])
    assert again.captions == [clips.captions[7]] and torch.equal(again.latents[0], clips.latents[7])


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"x" * 10_000, b"x" * 100_000])
def test_captions_that_cannot_be_told_are_refused_before_anything_is_written(
    tmp_path: Path, text: bytes
) -> None:
    path = folder_with_one_clip(tmp_path)
    untrained(tmp_path)
    (tmp_path / "videos" / "walk.txt").write_bytes(text)
    with pytest.raises(ArdiffError):
        WanTrainer(read_config(WanTrainConfig, path))
    assert not (tmp_path / "run").exists()


def test_a_caption_in_another_encoding_is_named(tmp_path: Path) -> None:
    folder_with_one_clip(tmp_path)
    (tmp_path / "videos" / "walk.txt").write_bytes(b"\xff\xfe")
    source = CaptionedVideos(
        VideoFolder(tmp_path / "videos", [Bucket(32, 32, 4)], held_out=0), untrained(tmp_path)
    )
    with pytest.raises(DataError, match=json.dumps("walk.txt")[1:-1]):
        source.clips([0])
