# SPDX-License-Identifier: Apache-2.0
"""Folders of text-to-video models: which are taken, and what is refused before weights are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import wan_folder
from safetensors.torch import load_file, save_file

import ardiff_engine as ade
from ardiff_engine.errors import ArdiffError, CheckpointError, ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wan_folder.write_folder(tmp_path_factory.mktemp("wan"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_which_pipeline_a_folder_is(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="system"):
        ade.Pipeline.from_pretrained(folder)
    with pytest.raises(ConfigError, match="self-forcing"):
        ade.Pipeline.from_pretrained(folder, system="no such thing")
    for place in (tiny_model, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError):
            ade.Pipeline.from_pretrained(place, system="wan")


def another_kind(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": "StableDiffusionPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))


def other_text(folder: Path) -> None:
    wan_folder.text_encoder(24).save_pretrained(folder / "text_encoder")


def other_latents(folder: Path) -> None:
    wan_folder.transformer(in_channels=6, out_channels=6).save_pretrained(folder / "transformer")


def two_experts(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer_2"] = ["diffusers", "WanTransformer3DModel"]
    (folder / "model_index.json").write_text(json.dumps(index))


def with_clip(folder: Path) -> None:
    shutil.rmtree(folder / "transformer")
    own = wan_folder.transformer(in_channels=12, image_dim=8, added_kv_proj_dim=24)
    own.save_pretrained(folder / "transformer")


def another_clip(folder: Path) -> None:
    with_clip(folder)
    wan_folder.image_encoder(width=4).save_pretrained(folder / "image_encoder")


def odd_channels(folder: Path) -> None:
    shutil.rmtree(folder / "transformer")
    wan_folder.transformer(in_channels=7).save_pretrained(folder / "transformer")


def no_autoencoder(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def mixed_shards(folder: Path) -> None:
    first, *_ = sorted((folder / "transformer").glob("*.safetensors"))
    held = load_file(first)
    save_file(held | {"blocks.9.attn1.to_q.bias": torch.zeros(24)}, first)


def lost_shard(folder: Path) -> None:
    sorted((folder / "transformer").glob("*.safetensors"))[0].unlink()


def pickled(folder: Path) -> None:
    shutil.rmtree(folder / "transformer")
    (folder / "transformer").mkdir()
    torch.save({}, folder / "transformer" / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "error", "says"),
    [
        (another_kind, CheckpointError, "StableDiffusion"),
        (other_text, ConfigError, "24 wide"),
        (other_latents, ConfigError, "channels"),
        (two_experts, CheckpointError, "boundary_ratio"),
        (with_clip, ConfigError, "CLIP"),
        (another_clip, ConfigError, "257 tokens of 4"),
        (odd_channels, ConfigError, "7 channels"),
        (no_autoencoder, CheckpointError, "2.1_VAE.*2.2_VAE.*vae.safetensors"),
        (mixed_shards, CheckpointError, "different saves"),
        (lost_shard, CheckpointError, "safetensors"),
        (pickled, CheckpointError, "convert"),
    ],
)
def test_folders_that_are_refused_before_weights_are_read(
    copy: Path, monkeypatch: pytest.MonkeyPatch, harm, error, says
) -> None:
    harm(copy)
    monkeypatch.setattr(
        "ardiff_engine.weights.safetensors_file.SafetensorsFile.read", lambda *_: pytest.fail("read weights")
    )
    with pytest.raises(error, match=says):
        ade.Pipeline.from_pretrained(copy, system="self-forcing")


def test_nan_in_one_tensor(copy: Path) -> None:
    first, *_ = sorted((copy / "transformer").glob("*.safetensors"))
    held = load_file(first)
    next(iter(held.values())).flatten()[0] = float("nan")
    save_file(held, first)
    with pytest.raises(ArdiffError, match="NaN"):
        ade.Pipeline.from_pretrained(copy, system="self-forcing")
