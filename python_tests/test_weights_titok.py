# SPDX-License-Identifier: Apache-2.0
"""Stage-1 checkpoints: sizes and variant come from the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from official_keys import official_shapes
from safetensors.torch import save_file
from test_titok import TINY

from ardiff_engine.errors import CheckpointError, ConfigError
from ardiff_engine.models import TiTok, TiTokConfig
from ardiff_engine.weights import load_titok
from ardiff_engine.weights.titok_layout import read_titok_config

UNSEEN = {"encoder_heads": 4, "decoder_heads": 4, "norm_groups": 4}
VARIANTS = [
    TINY,
    dataclasses.replace(TINY, temporal=True, num_frames=16),
    dataclasses.replace(
        TINY, logits_hidden=10, channel_multipliers=(2, 3, 4), res_blocks=2, image_channels=1
    ),
]


def write(tmp_path: Path, model: TiTok, prefix: str = "") -> Path:
    path = tmp_path / "model.safetensors"
    save_file({prefix + name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("prefix", ["", "vae.", "module."])
def test_sizes_and_weights_are_read(tmp_path: Path, config: TiTokConfig, prefix: str) -> None:
    model = TiTok(config)
    loaded = load_titok(write(tmp_path, model, prefix), UNSEEN)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in loaded.state_dict().items()} == shapes
    assert loaded.config.temporal == config.temporal and not loaded.training
    images = torch.rand(1, config.num_frames, config.image_channels, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), loaded(images))


@pytest.mark.parametrize(
    ("keys", "temporal"), [("vae_titok_kl_large_4ch", False), ("vae_titok_kl_wt_large_4ch", True)]
)
def test_full_size_config(keys: str, temporal: bool) -> None:
    config = read_titok_config(official_shapes(keys), {}, keys)
    assert config == TiTokConfig.preset("large", temporal=temporal)


def test_settings_that_shapes_do_not_show(tmp_path: Path) -> None:
    path = write(tmp_path, TiTok(TINY))
    with pytest.raises(ConfigError, match="encoder_heads"):
        load_titok(path)
    with pytest.raises(ConfigError, match="norm_groups"):
        load_titok(path, {"encoder_heads": 4, "decoder_heads": 4})
    with pytest.raises(ConfigError, match="token_size"):
        load_titok(path, {**UNSEEN, "token_size": 4})
    assert load_titok(path, {**UNSEEN, "channel_multipliers": [1, 1, 2]}).config == TINY
    assert load_titok(path, TINY).config == TINY


def test_strict(tmp_path: Path) -> None:
    model = TiTok(TINY)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["decoder.ln_pots.bias"] = tensors.pop("decoder.ln_post.bias")
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"decoder.ln_post.bias \(nearest: decoder.ln_pots.bias\)"):
        load_titok(tmp_path / "a.safetensors", UNSEEN)


def test_another_kind_of_model(tmp_path: Path) -> None:
    save_file({"x_embedder.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="encoder.patch_embed.weight"):
        load_titok(tmp_path / "a.safetensors")


def test_oblong_grid(tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in TiTok(TINY).state_dict().items()}
    tensors["encoder.positional_embedding"] = torch.ones(13, 32)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="square"):
        load_titok(tmp_path / "a.safetensors", UNSEEN)
