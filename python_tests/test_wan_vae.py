# SPDX-License-Identifier: Apache-2.0
"""Wan 2.1's autoencoder: official numbers, diffusers' class as a second oracle, and pieces of any length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from official_keys import generate_weights, recipe_tensor
from safetensors.torch import save_file

import ardiff_engine as ade
from ardiff_engine.codec import WanVAE
from ardiff_engine.codec.wan.layout import official_names
from ardiff_engine.errors import CheckpointError, ConfigError, TensorError

GOLDEN = {
    name: np.load(Path(__file__).parent / "golden" / "wan" / f"{name}.npz")
    for name in ("vae21", "vae21_res2")
}


def official(name: str) -> WanVAE:
    golden = GOLDEN[name]
    config = json.loads(str(golden["config"]))
    vae = WanVAE(
        config["dim"],
        config["z_dim"],
        config["dim_mult"],
        config["num_res_blocks"],
        golden["mean"],
        golden["std"],
    )
    generate_weights(vae)
    return vae


def error(got: torch.Tensor, want: np.ndarray) -> float:
    return float((got - torch.from_numpy(want)).norm() / np.linalg.norm(want))


@pytest.mark.parametrize("name", GOLDEN)
def test_official_numbers(name: str) -> None:
    golden, vae = GOLDEN[name], official(name)
    assert sorted(vae.state_dict()) == sorted(map(str, golden["official_keys"]))
    assert error(vae.encode(torch.from_numpy(golden["pixels"])), golden["latent"]) <= 1e-5
    assert error(vae.decode(torch.from_numpy(golden["z"])), golden["decoded"]) <= 1e-5
    decoder, z = vae.decoder(), torch.from_numpy(golden["z"])[0].transpose(0, 1)
    frames = [decoder.push(piece) for piece in z.split(golden["stream_splits"].tolist())]
    assert [len(piece) for piece in frames] == golden["stream_frames"].tolist()


@pytest.mark.parametrize("splits", [(1,) * 6, (2, 4), (5, 1), (3, 3), (1, 2, 3)])
def test_pieces_of_any_length_give_the_same_bits(splits: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    vae = official("vae21")
    z = torch.randn(6, 16, 3, 2)
    whole = vae.decode(z.transpose(0, 1)[None])[0].transpose(0, 1)
    assert whole.shape == (21, 3, 24, 16)
    decoder = vae.decoder()
    assert torch.equal(torch.cat([decoder.push(piece) for piece in z.split(splits)]), whole)


def test_two_decoders_do_not_know_each_other_and_state_is_as_large_as_promised() -> None:
    torch.manual_seed(1)
    vae = official("vae21_res2")
    z = torch.randn(2, 3, vae.channels, 2, 4)
    decoders = [vae.decoder(), vae.decoder()]
    mixed = [[decoders[k].push(z[k, i : i + 1]) for k in (0, 1)] for i in range(3)]
    for k in (0, 1):
        alone = vae.decode(z[k].transpose(0, 1)[None])[0].transpose(0, 1)
        assert torch.equal(torch.cat([pieces[k] for pieces in mixed]), alone)
        assert decoders[k].nbytes == vae.bytes_per_stream(16, 32)


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        vae = WanVAE()
    assert sum(p.numel() for p in vae.parameters()) == 126_892_531
    # 0.94 G values at 480 x 832, in float32.
    assert vae.bytes_per_stream(480, 832) / 4 == pytest.approx(0.94e9, rel=0.01)


def diffusers_vae(folder: Path, **config: object):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(2)
    vae = diffusers.AutoencoderKLWan(**config).eval()
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.3 / max(1, parameter[0].numel()) ** 0.5)
    vae.save_pretrained(folder)
    return vae


@pytest.mark.parametrize("res_blocks", [1, 2])
@torch.no_grad()
def test_a_folder_of_diffusers(tmp_path: Path, res_blocks: int) -> None:
    mean, std = torch.linspace(-1, 1, 6).tolist(), torch.linspace(0.5, 2, 6).tolist()
    theirs = diffusers_vae(
        tmp_path, base_dim=8, z_dim=6, num_res_blocks=res_blocks, latents_mean=mean, latents_std=std
    )
    ours = WanVAE.from_file(tmp_path)
    pixels = torch.rand(1, 3, 9, 32, 16) * 2 - 1
    moments = theirs.encode(pixels).latent_dist.mean
    z = ours.encode(pixels)
    assert error(z * ours.std + ours.mean, moments.numpy()) <= 1e-4
    decoded = theirs.decode(z * ours.std + ours.mean).sample
    assert error(ours.decode(z).clamp(-1, 1), decoded.numpy()) <= 1e-4


def test_names_of_diffusers_are_translated_as_officially() -> None:
    for golden in GOLDEN.values():
        if "official_to_diffusers" in golden:
            theirs = map(str, golden["official_to_diffusers"])
            names = official_names(dict.fromkeys(theirs, ()))
            expected = zip(
                map(str, golden["official_keys"]), map(str, golden["official_to_diffusers"]), strict=True
            )
            assert names == dict(expected)


def test_a_file_with_official_names(tmp_path: Path) -> None:
    shapes = {name: tuple(p.shape) for name, p in WanVAE(8).state_dict().items()}
    save_file(
        {name: recipe_tensor(name, shape) for name, shape in shapes.items()}, tmp_path / "vae.safetensors"
    )
    vae = ade.codec.WanVAE.from_file(tmp_path / "vae.safetensors")
    assert vae.width == 8 and vae.multipliers == (1, 2, 4, 4) and vae.res_blocks == 2
    expected = WanVAE(8)
    generate_weights(expected)
    z = torch.randn(1, 16, 2, 2, 2)
    assert torch.equal(vae.decode(z), expected.decode(z))


def test_files_that_are_something_else(tmp_path: Path) -> None:
    tensors = {name: recipe_tensor(name, tuple(p.shape)) for name, p in WanVAE(8).state_dict().items()}
    path = tmp_path / "vae.safetensors"
    for change in ("conv2.weight", "encoder.downsamples.2.resample.1.weight", "decoder.head.2.bias"):
        save_file({name: t for name, t in tensors.items() if name != change}, path)
        with pytest.raises(CheckpointError):
            WanVAE.from_file(path)
    save_file({**tensors, "decoder.head.2.bias": torch.zeros(4)}, path)
    with pytest.raises(CheckpointError, match=r"decoder.head.2.bias"):
        WanVAE.from_file(path)


def test_inputs_that_do_not_fit() -> None:
    vae = WanVAE(4, 4, res_blocks=1, mean=[0.0] * 4, std=[1.0] * 4)
    for shape in [(1, 3, 4, 16, 16), (1, 3, 0, 16, 16), (1, 3, 5, 12, 16), (3, 5, 16, 16), (1, 4, 5, 16, 16)]:
        with pytest.raises(TensorError):
            vae.encode(torch.zeros(shape))
    with pytest.raises(TensorError):
        vae.decode(torch.zeros(1, 5, 2, 2, 2))
    with pytest.raises(TensorError):
        vae.decoder().push(torch.zeros(4, 2, 2))
    for settings in ({"mean": [0.0] * 3}, {"std": [0.0] * 4}, {"mean": ["x"] * 4}):
        with pytest.raises(ConfigError):
            WanVAE(4, 4, res_blocks=1, **{"mean": [0.0] * 4, "std": [1.0] * 4, **settings})
    with pytest.raises(ConfigError):
        WanVAE(0)
