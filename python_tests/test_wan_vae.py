# SPDX-License-Identifier: Apache-2.0
"""The autoencoders of Wan 2.1 and 2.2: official numbers, diffusers' class as a second oracle, and pieces of
any length."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from official_keys import generate_weights, recipe_tensor
from safetensors.torch import save_file

import ardiff_engine as ade
from ardiff_engine.codec import WanVAE
from ardiff_engine.codec.wan.layout import official_names
from ardiff_engine.errors import CheckpointError, ConfigError, StreamClosedError, TensorError

GOLDEN = {
    name: np.load(Path(__file__).parent / "golden" / "wan" / f"{name}.npz")
    for name in ("vae21", "vae21_res2", "x_vae22")
}
TINY = {"channels": 4, "res_blocks": 1, "mean": [0.1] * 4, "std": [1.2] * 4}


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
        residual="dec_dim" in config,
        decoder_width=config.get("dec_dim"),
    )
    generate_weights(vae)
    return vae


def tiny(residual: bool) -> WanVAE:
    vae = WanVAE(4, **TINY, residual=residual, decoder_width=8 if residual else None)
    generate_weights(vae)
    return vae.requires_grad_(False)


def error(got: torch.Tensor, want: np.ndarray) -> float:
    return float((got - torch.from_numpy(want)).norm() / np.linalg.norm(want))


def whole(vae: WanVAE, z: torch.Tensor) -> torch.Tensor:
    """Latents [n, C, h, w] decoded at once -> frames [m, 3, H, W]."""
    return vae.decode(z.transpose(0, 1)[None])[0].transpose(0, 1)


def random_cuts(total: int, chance: random.Random) -> list[int]:
    cuts = sorted(chance.sample(range(1, total), chance.randrange(total)))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


@pytest.mark.parametrize("name", GOLDEN)
def test_official_numbers(name: str) -> None:
    golden, vae = GOLDEN[name], official(name)
    assert sorted(vae.state_dict()) == sorted(map(str, golden["official_keys"]))
    assert error(vae.encode(torch.from_numpy(golden["pixels"])), golden["latent"]) <= 1e-5
    assert error(vae.decode(torch.from_numpy(golden["z"])), golden["decoded"]) <= 1e-5
    decoder, z = vae.decoder(), torch.from_numpy(golden["z"])[0].transpose(0, 1)
    pushes = golden["stream_splits"].tolist() if "stream_splits" in golden else [1] * len(z)
    frames = [decoder.push(piece) for piece in z.split(pushes)]
    assert [len(piece) for piece in frames] == golden["stream_frames"].tolist()


@pytest.mark.parametrize("name", GOLDEN)
def test_names_of_diffusers_are_translated_as_officially(name: str) -> None:
    theirs, ours = (list(map(str, GOLDEN[name][k])) for k in ("official_to_diffusers", "official_keys"))
    assert official_names(dict.fromkeys(theirs, ())) == dict(zip(ours, theirs, strict=True))


@pytest.mark.parametrize("residual", [False, True])
def test_pieces_of_any_length_give_the_same_bits(residual: bool) -> None:
    vae, chance = tiny(residual), random.Random(3)
    z = torch.randn(7, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    at_once = whole(vae, z)
    assert at_once.shape == (25, 3, 3 * vae.scale, 2 * vae.scale)
    pixels = at_once.clamp(-1, 1)
    latents = vae.encode(pixels.transpose(0, 1)[None])[0].transpose(0, 1)
    for _ in range(6):
        decoder, encoder = vae.decoder(), vae.video_encoder()
        frames = [decoder.push(piece) for piece in z.split(random_cuts(7, chance))]
        assert torch.equal(torch.cat(frames), at_once)
        encoded = [encoder.push(piece) for piece in pixels.split(random_cuts(25, chance))]
        assert torch.equal(torch.cat(encoded), latents) and encoder.waiting == 0


@pytest.mark.parametrize("name", GOLDEN)
def test_state_is_as_large_as_said_before_and_decoders_do_not_know_each_other(name: str) -> None:
    vae = official(name)
    z = torch.randn(2, 3, vae.channels, 2, 4, generator=torch.Generator().manual_seed(1))
    decoders, said = [vae.decoder(), vae.decoder()], vae.bytes_per_stream((2, 4))
    mixed = [[decoders[k].push(z[k, i : i + 1]) for k in (0, 1)] for i in range(3)]
    for k in (0, 1):
        assert torch.equal(torch.cat([pieces[k] for pieces in mixed]), whole(vae, z[k]))
        assert decoders[k].nbytes == said
        decoders[k].close()
        assert decoders[k].nbytes == 0
        with pytest.raises(StreamClosedError):
            decoders[k].push(z[k])


@pytest.mark.parametrize("residual", [False, True])
def test_a_decoder_goes_on_after_latents_that_it_is_given(residual: bool) -> None:
    vae = tiny(residual)
    z = torch.randn(vae.reach + 4, 4, 1, 2, generator=torch.Generator().manual_seed(2))
    at_once = whole(vae, z)
    for start in (1, 2, vae.reach + 3):
        # Far into a video the latents within reach are enough, and fewer are not.
        history = z[vae.history(start) : start]
        assert len(history) == min(start, vae.reach)
        frames = vae.decoder(history).push(z[start:])
        assert torch.equal(frames, at_once[-len(frames) :]) and len(frames) == 4 * (len(z) - start)
    assert not torch.equal(vae.decoder(history[-5:]).push(z[start:]), frames)


def test_a_copy_goes_its_own_way() -> None:
    vae = tiny(residual=False)
    z = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(4))
    decoder = vae.decoder()
    decoder.push(z[:1])
    other = decoder.copy("cpu")
    decoder.push(z[:1])
    assert torch.equal(other.push(z[1:]), whole(vae, z)[1:])


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        small = WanVAE()
        large = WanVAE(160, 48, mean=[0.0] * 48, std=[1.0] * 48, residual=True, decoder_width=256)
    assert sum(p.numel() for p in small.parameters()) == 126_892_531
    assert sum(p.numel() for p in large.parameters()) == 704_688_668
    # 0.94 G values at 480 x 832, in float32.
    assert small.bytes_per_stream((60, 104)) / 4 == pytest.approx(0.94e9, rel=0.01)


def diffusers_vae(folder: Path, shards: int, **config: object):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(2)
    vae = diffusers.AutoencoderKLWan(**config).eval()
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.3 / max(1, parameter[0].numel()) ** 0.5)
    size = sum(parameter.nbytes for parameter in vae.parameters())
    vae.save_pretrained(folder, max_shard_size=size // shards if shards > 1 else "10GB")
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shards > 1)
    return vae


WAN_22 = {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "decoder_base_dim": 12}


@pytest.mark.parametrize(
    ("res_blocks", "shards", "config"), [(1, 1, {}), (2, 3, {}), (1, 2, WAN_22), (2, 1, WAN_22)]
)
@torch.no_grad()
def test_a_folder_of_diffusers(tmp_path: Path, res_blocks: int, shards: int, config: dict) -> None:
    mean, std = torch.linspace(-1, 1, 6).tolist(), torch.linspace(0.5, 2, 6).tolist()
    sizes = {"base_dim": 8, "z_dim": 6, "num_res_blocks": res_blocks}
    theirs = diffusers_vae(tmp_path, shards, **sizes, latents_mean=mean, latents_std=std, **config)
    ours = WanVAE.from_file(tmp_path)
    pixels = torch.rand(1, 3, 9, 32, 64) * 2 - 1
    moments = theirs.encode(pixels).latent_dist.mean
    z = ours.encode(pixels)
    assert error(z * ours.std + ours.mean, moments.numpy()) <= 1e-4
    decoded = theirs.decode(z * ours.std + ours.mean).sample
    assert error(ours.decode(z).clamp(-1, 1), decoded.numpy()) <= 1e-4


def tensors_of(vae: WanVAE) -> dict[str, torch.Tensor]:
    return {name: recipe_tensor(name, tuple(p.shape)) for name, p in vae.state_dict().items()}


def test_a_file_with_official_names(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_file(tensors_of(WanVAE(8)), path)
    vae = ade.codec.WanVAE.from_file(path)
    assert vae.width == 8 and vae.multipliers == (1, 2, 4, 4) and vae.res_blocks == 2 and not vae.residual
    expected = WanVAE(8)
    generate_weights(expected)
    z = torch.randn(1, 16, 2, 2, 2)
    assert torch.equal(vae.decode(z), expected.decode(z))


def test_a_file_of_wan_22(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    sizes = {"res_blocks": 1, "residual": True, "decoder_width": 8}
    save_file(tensors_of(WanVAE(4, 48, mean=[0.0] * 48, std=[1.0] * 48, **sizes)), path)
    vae = WanVAE.from_file(path)
    assert (vae.width, vae.decoder_width, vae.channels, vae.res_blocks, vae.scale) == (4, 8, 48, 1, 16)
    assert vae.mean.flatten().tolist() == pytest.approx(GOLDEN["x_vae22"]["mean48"].tolist())
    assert vae.std.flatten().tolist() == pytest.approx(GOLDEN["x_vae22"]["std48"].tolist())
    # Nobody published constants for 16 channels of this kind.
    save_file(tensors_of(WanVAE(4, 16, **sizes)), path)
    with pytest.raises(CheckpointError, match="16 channels"):
        WanVAE.from_file(path)
    mean = [0.5] * 16
    assert WanVAE.from_file(path, mean=mean, std=[2.0] * 16).mean.flatten().tolist() == mean


def test_files_that_are_something_else(tmp_path: Path) -> None:
    tensors, path = tensors_of(WanVAE(8)), tmp_path / "vae.safetensors"
    for change in ("conv2.weight", "encoder.downsamples.2.resample.1.weight", "decoder.head.2.bias"):
        save_file({name: t for name, t in tensors.items() if name != change}, path)
        with pytest.raises(CheckpointError):
            WanVAE.from_file(path)
    save_file({**tensors, "decoder.head.2.bias": torch.zeros(4)}, path)
    with pytest.raises(CheckpointError, match=r"decoder.head.2.bias"):
        WanVAE.from_file(path)
    save_file({"blocks.0.ffn.0.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(CheckpointError, match="autoencoder|conv2"):
        WanVAE.from_file(path)
    # Another sort of weights under the names of an autoencoder, and sizes that are none.
    save_file({**tensors, "encoder.conv1.weight": torch.zeros(8, 5, 3, 3, 3)}, path)
    with pytest.raises(CheckpointError, match=r"encoder.conv1.weight"):
        WanVAE.from_file(path)
    with pytest.raises(CheckpointError):
        WanVAE.from_file(tmp_path / "not there")


def test_inputs_that_do_not_fit() -> None:
    vae = tiny(residual=False)
    for shape in [(1, 3, 4, 16, 16), (1, 3, 0, 16, 16), (1, 3, 5, 12, 16), (3, 5, 16, 16), (1, 4, 5, 16, 16)]:
        with pytest.raises(TensorError):
            vae.encode(torch.zeros(shape))
    with pytest.raises(TensorError):
        vae.encode(torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8))
    with pytest.raises(TensorError):
        vae.decode(torch.zeros(1, 5, 2, 2, 2))
    decoder = vae.decoder()
    for shape in [(4, 2, 2), (1, 5, 2, 2), (0, 4, 2, 2)]:
        with pytest.raises(TensorError):
            decoder.push(torch.zeros(shape))
    decoder.push(torch.zeros(1, 4, 2, 2))
    with pytest.raises(TensorError, match="size"):
        decoder.push(torch.zeros(1, 4, 2, 3))
    encoder = vae.video_encoder()
    encoder.push(torch.zeros(2, 3, 16, 16))
    with pytest.raises(TensorError, match="size"):
        encoder.push(torch.zeros(2, 3, 16, 24))
    for size in (None, (60,), (0, 4), 60, (6.0, 4)):
        with pytest.raises(ConfigError):
            vae.bytes_per_stream(size)  # type: ignore[arg-type]
    for settings in ({"mean": [0.0] * 3}, {"std": [0.0] * 4}, {"mean": ["x"] * 4}):
        with pytest.raises(ConfigError):
            WanVAE(4, **{**TINY, **settings})
    with pytest.raises(ConfigError):
        WanVAE(0)
    with pytest.raises(ConfigError, match="shortcut"):
        WanVAE(4, **TINY, multipliers=(1, 2, 4, 8), residual=True)
