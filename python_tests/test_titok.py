# SPDX-License-Identifier: Apache-2.0
"""The per-frame autoencoder against the official implementation's numbers, names and shapes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from official_keys import GOLDEN, generate_weights, official_shapes

from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.models import TiTok, TiTokConfig

TINY = TiTokConfig(
    image_size=16,
    patch_size=4,
    encoder_width=32,
    encoder_layers=2,
    encoder_heads=4,
    decoder_width=48,
    decoder_layers=1,
    decoder_heads=4,
    num_latent_tokens=5,
    token_size=3,
    codebook_logits=20,
    quantized_channels=12,
    hidden_channels=8,
    channel_multipliers=(1, 1, 2),
    res_blocks=1,
    norm_groups=4,
)
GOLDEN_TOLERANCE = 2e-5
HALF_TOLERANCE = 5e-4


def relative(got: torch.Tensor, expected: np.ndarray) -> float:
    want = torch.from_numpy(expected.astype(np.float32))
    assert got.shape == want.shape
    return float((got - want).norm() / want.norm())


@pytest.fixture(scope="module")
def tiny() -> TiTok:
    torch.manual_seed(0)
    model = TiTok(TINY).eval()
    generate_weights(model)
    return model


@torch.no_grad()
def test_golden_small64() -> None:
    golden = np.load(GOLDEN / "vae_small64.npz")
    config = dataclasses.replace(TiTokConfig.preset("small"), image_size=64, num_latent_tokens=8)
    model = TiTok(config).eval()
    generate_weights(model)
    x, z = torch.from_numpy(golden["x"]), torch.from_numpy(golden["z"])
    assert relative(torch.cat(model.moments(x[0]), dim=1), golden["moments"]) < GOLDEN_TOLERANCE
    assert relative(model.encode(x), golden["z"]) < GOLDEN_TOLERANCE
    assert relative(model.decoder(z[0]), golden["decoder_logits"]) < HALF_TOLERANCE
    assert relative(model.decode(z), golden["decoded"]) < GOLDEN_TOLERANCE
    assert relative(model(x), golden["forward_mode_false"]) < GOLDEN_TOLERANCE


@pytest.mark.parametrize(
    ("temporal", "keys", "parameters"),
    [(False, "vae_titok_kl_large_4ch", 640_993_547), (True, "vae_titok_kl_wt_large_4ch", 842_713_355)],
)
def test_official_names_and_shapes(temporal: bool, keys: str, parameters: int) -> None:
    with torch.device("meta"):
        model = TiTok(TiTokConfig.preset("large", temporal=temporal))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == official_shapes(keys)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_shapes_and_dtypes(tiny: TiTok) -> None:
    images = torch.rand(2, 3, 3, 16, 16, dtype=torch.float64)
    z = tiny.encode(images)
    assert z.shape == (2, 3, 3, 1, 5) and z.dtype == torch.float32
    assert tiny.decode(z).shape == (2, 3, 3, 16, 16)


@torch.no_grad()
def test_frames_are_independent(tiny: TiTok) -> None:
    images = torch.rand(1, 4, 3, 16, 16)
    z = tiny.encode(images, frames_per_pass=3)
    torch.testing.assert_close(z[:, 2:3], tiny.encode(images[:, 2:3]), rtol=1e-5, atol=1e-6)
    whole = tiny.decode(z, frames_per_pass=1)
    torch.testing.assert_close(whole[:, 3:], tiny.decode(z[:, 3:]), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_decoder_ignores_the_norm_of_latents(tiny: TiTok) -> None:
    z = torch.randn(1, 1, 3, 1, 5)
    torch.testing.assert_close(tiny.decode(z), tiny.decode(z * 7.5), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_posterior_sample(tiny: TiTok) -> None:
    images = torch.rand(1, 2, 3, 16, 16)
    mean, log_variance = tiny.moments(images[0])
    first = tiny.encode(images, sample_posterior=True, seed=3)
    assert torch.equal(first, tiny.encode(images, sample_posterior=True, seed=3))
    assert not torch.equal(first, tiny.encode(images, sample_posterior=True, seed=4))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(first[0], mean + torch.exp(log_variance / 2) * noise)


@torch.no_grad()
def test_log_variance_is_clamped(tiny: TiTok) -> None:
    model = TiTok(TINY)
    with torch.no_grad():
        model.encoder.conv_out.bias[3:] = 1000.0
    assert float(model.moments(torch.rand(1, 3, 16, 16))[1].max()) == 20.0


@pytest.mark.parametrize("temporal", [False, True])
def test_every_parameter_gets_a_gradient(temporal: bool) -> None:
    torch.manual_seed(0)
    model = TiTok(dataclasses.replace(TINY, temporal=temporal, num_frames=2))
    model(torch.rand(1, 2, 3, 16, 16), sample_posterior=True, seed=0).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 16, 16),
        torch.zeros(1, 2, 3, 16, 20),
        torch.zeros(1, 2, 1, 16, 16),
        torch.zeros(1, 0, 3, 16, 16),
        torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8),
        torch.zeros(1, 2, 3, 16, 16, device="meta"),
    ],
)
def test_encode_rejects(tiny: TiTok, images: torch.Tensor) -> None:
    with pytest.raises(TensorError, match="images"):
        tiny.encode(images)


def test_decode_rejects(tiny: TiTok) -> None:
    with pytest.raises(TensorError, match=r"got \[1, 2, 4, 1, 5\]"):
        tiny.decode(torch.zeros(1, 2, 4, 1, 5))
    with pytest.raises(TensorError, match="frames_per_pass"):
        tiny.decode(torch.zeros(1, 2, 3, 1, 5), frames_per_pass=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 8, "image_size": 16}, "patch_size 4 = 2"),
        ({"image_size": 18}, "multiple of patch_size"),
        ({"encoder_heads": 5}, "encoder_width"),
        ({"decoder_heads": 5}, "decoder_width"),
        ({"norm_groups": 3}, "norm_groups"),
        ({"token_size": 0}, "token_size"),
        ({"res_blocks": True}, "res_blocks"),
        ({"channel_multipliers": (1, 0, 2)}, "channel_multipliers"),
        ({"temporal": 1}, "temporal"),
    ],
)
def test_config_rejects(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **change)


def test_config_dictionary() -> None:
    assert TiTokConfig.from_dict(TINY.to_dict()) == TINY
    with pytest.raises(ConfigError, match="Did you mean 'token_size'"):
        TiTokConfig.from_dict({"token_sise": 4})
    with pytest.raises(ConfigError, match="small"):
        TiTokConfig.preset("huge")  # type: ignore[arg-type]
