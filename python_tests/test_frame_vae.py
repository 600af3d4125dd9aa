# SPDX-License-Identifier: Apache-2.0
"""The small autoencoder of frames: what its latents are, as files, as a codec, and how it is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.models.frame_vae import FrameVAE, FrameVAECodec, FrameVAEConfig
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.training import run_train_vae
from ardiff_engine.weights import load_model, save_model

SMALL = FrameVAEConfig(image_size=32, channels=4, width=8)
TOML = """
autoencoder = "frame_vae"
[run]
output = "{output}"
steps = 4
batch = 3
log_every = 1
validate_every = 4
validation_clips = 3
checkpoint_every = 2
[data]
source = "moving_shapes"
num_frames = 2
[data.shapes]
canvas = 32
min_radius = 4.0
max_radius = 6.0
[model]
image_size = 32
channels = 4
width = 8
[optimizer]
lr = 1e-2
"""


def test_latents_have_mean_0_and_variance_1_in_every_channel() -> None:
    torch.manual_seed(0)
    vae = FrameVAE(SMALL).train()
    images = torch.rand(64, 3, 32, 32) * torch.rand(64, 3, 1, 1)
    for _ in range(1200):
        latents = vae.latents(images)
    assert latents.shape == (64, 4, 4, 4)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4 and (latents.std((0, 2, 3)) - 1).abs().max() < 1e-3
    # What was kept gives the same latents in use, picture by picture.
    alone = torch.cat([vae.eval().latents(image[None]) for image in images])
    assert torch.allclose(alone, latents, atol=0.01)
    assert vae.images(latents).shape == images.shape


def test_it_comes_back_from_a_folder_and_decodes_frames_as_they_come(tmp_path: Path) -> None:
    torch.manual_seed(1)
    vae = FrameVAE(SMALL)
    vae.mean.normal_()
    save_model(vae.eval(), tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, FrameVAE) and torch.equal(again.mean, vae.mean)
    small = WanConfig(width=24, depth=1, heads=2, mlp_width=24, channels=4, out_channels=4, text_dim=4)
    codec = FrameVAECodec(again, WanTransformer(small).spec)
    pictures = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    latents = codec.encode(pictures)
    assert latents.shape == (5, 4, 4, 4)
    decoder = codec.decoder()
    pieces = torch.cat([decoder.push(latents[:2]), decoder.push(latents[2:])])
    expected = (vae.images(latents) * 255).round().clamp(0, 255).permute(0, 2, 3, 1)
    assert pieces.dtype == torch.uint8 and (pieces.float() - expected).abs().max() <= 1
    with pytest.raises(ConfigError, match="fit"):
        FrameVAECodec(FrameVAE(FrameVAEConfig(channels=3)), WanTransformer(small).spec)


@pytest.mark.parametrize("settings", [{"image_size": 60}, {"width": 12}, {"channels": 0}, {"width": True}])
def test_sizes_that_do_not_fit(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        FrameVAEConfig(**settings)


def test_pixels_and_latents_of_other_shapes() -> None:
    vae = FrameVAE(SMALL)
    for images in (torch.rand(1, 3, 30, 32), torch.rand(3, 32, 32), torch.rand(1, 1, 32, 32)):
        with pytest.raises(TensorError, match="images"):
            vae.latents(images)
    with pytest.raises(TensorError, match="latents"):
        vae.images(torch.rand(1, 3, 4, 4))


def test_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    file = tmp_path / "vae.toml"
    file.write_text(TOML.format(output=whole))
    folder = run_train_vae(file)
    run_train_vae(file, [f"run.output={json.dumps(str(parts))}", "run.steps=2"])
    run_train_vae(file, [f"run.output={json.dumps(str(parts))}"], resume=True)
    once, twice = load_model(folder).state_dict(), load_model(parts / "vae").state_dict()
    assert all(torch.equal(once[name], twice[name]) for name in once)
    lines = [json.loads(line) for line in (whole / "training_log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    assert any("validation_psnr" in line for line in lines)
    assert (whole / "reconstructions" / "step-00000004.png").is_file()
