# SPDX-License-Identifier: Apache-2.0
"""Tiles: exact where they overlap by as much as a codec sees, close otherwise, and as good in pieces."""

from __future__ import annotations

import pytest
import torch
from official_keys import generate_weights
from test_engine_codec import SIZE, check, engine_for, request
from test_engine_codec import model as model

from ardiff_engine.codec import TAEHV, Tiled, WanVAE
from ardiff_engine.codec.tiled import Axis
from ardiff_engine.errors import ConfigError, TensorError


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    vae = WanVAE(4, 4, (1, 1, 1, 1), 1, [0.1] * 4, [1.5] * 4)
    generate_weights(vae)
    return vae.requires_grad_(False)


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize(("length", "tile", "overlap", "blend"), [
    (20, 8, 3, 2), (20, 8, 7, 7), (9, 8, 2, 0), (8, 8, 3, 3), (5, 8, 3, 1), (61, 16, 5, 5), (17, 3, 2, 1),
])  # fmt: skip
def test_tiles_cover_an_axis_and_weights_sum_to_one(length, tile, overlap, blend) -> None:
    axis = Axis.of(length, tile, overlap, blend, 4)
    starts = axis.starts
    assert starts[0] == 0 and starts[-1] + axis.tile == length and axis.tile == min(tile, length)
    assert all(b > a and a + axis.tile - b >= overlap for a, b in zip(starts, starts[1:], strict=False))
    torch.testing.assert_close(axis.weights.sum(0), torch.ones(4 * length))
    assert bool((axis.weights >= 0).all())
    for start, weights in zip(starts, axis.weights, strict=True):
        outside = torch.ones(4 * length, dtype=torch.bool)
        outside[4 * start : 4 * (start + axis.tile)] = False
        assert not bool(weights[outside].any())


@torch.no_grad()
def test_exact_where_the_overlap_holds_what_a_codec_sees(vae) -> None:
    light = TAEHV().requires_grad_(False)
    generate_weights(light)
    z = torch.randn(1, 16, 2, 1, 52, generator=torch.Generator().manual_seed(0))
    whole = light.decode(z)
    assert difference(Tiled(light, (44, 44), 38, 2).decode(z), whole) <= 1e-5
    assert difference(Tiled(light, (20, 20), 4, 2).decode(z), whole) > 1e-4
    # Wan's attention sees a whole frame. All the rest sees 14 latents far.
    local = WanVAE(4, 4, (1, 1, 1, 1), 1, [0.1] * 4, [1.5] * 4)
    generate_weights(local)
    for parameter in local.pixel_decoder.middle[1].proj.parameters():  # type: ignore[index, union-attr]
        parameter.zero_()
    z = torch.randn(1, 4, 3, 2, 44, generator=torch.Generator().manual_seed(1))
    assert difference(Tiled(local, (34, 34), 30, 2).decode(z), local.decode(z)) <= 1e-5


def test_close_to_the_whole(vae) -> None:
    """With generated weights, whose attention is even over the frame: a hard case."""
    z = torch.randn(1, 4, 2, 12, 20, generator=torch.Generator().manual_seed(2))
    whole = vae.decode(z)
    errors = [difference(Tiled(vae, (10, 12), overlap, 2).decode(z), whole) for overlap in (2, 4, 8)]
    assert errors == sorted(errors, reverse=True) and errors[-1] <= 0.2
    pixels = whole.clamp(-1, 1)
    assert difference(Tiled(vae, (10, 12), 8, 2).encode(pixels), vae.encode(pixels)) <= 0.2
    # A frame no larger than a tile is decoded as it is.
    assert torch.equal(Tiled(vae, (12, 20), 4, 2).decode(z), whole)


def test_no_seam(vae) -> None:
    """Where tiles meet, neighbouring pixels differ as they do without tiles; a cut would show."""
    z = torch.randn(1, 4, 1, 4, 24, generator=torch.Generator().manual_seed(3))
    whole = vae.decode(z)

    def step(frames: torch.Tensor) -> torch.Tensor:
        return frames.diff(dim=-1).abs().mean(dim=(0, 1, 2, 3))

    blended, cut = (
        float((step(Tiled(vae, (14, 14), 4, blend).decode(z)) / step(whole)).max()) for blend in (4, 0)
    )
    assert blended <= 1.6 < cut


def test_pieces_copies_and_state(vae) -> None:
    tiled = Tiled(vae, (5, 6), 2, 1)
    z = torch.randn(5, 4, 7, 9, generator=torch.Generator().manual_seed(4))
    whole = tiled.decode(z.transpose(0, 1)[None])[0].transpose(0, 1)
    decoder = tiled.decoder()
    frames = [decoder.push(piece) for piece in (z[:1], z[1:3])]
    other = decoder.copy()
    assert decoder.nbytes == tiled.bytes_per_stream((7, 9)) > vae.bytes_per_stream((7, 9))
    for each in (decoder, other, tiled.decoder(z[:3])):
        assert torch.equal(torch.cat([*frames, each.push(z[3:])]), whole)
    decoder.close()
    assert decoder.nbytes == 0


def test_in_an_engine(model, vae) -> None:
    tiled = Tiled(vae, (3, 4), 2, 1)
    stream = engine_for(model, tiled).submit(request())
    pictures = list(stream.pictures())
    latents = stream.result().transpose(0, 1)[None]
    assert latents.shape[3:] == SIZE
    check(pictures, tiled.decode(latents)[0].transpose(0, 1))


def test_what_is_refused(vae) -> None:
    for tile, overlap, blend in [
        ((4, 4), 4, 0),
        ((4, 8), 5, 1),
        ((8, 8), 2, 3),
        ((8, 8), 2, -1),
        ((8,), 2, 1),
    ]:
        with pytest.raises(ConfigError):
            Tiled(vae, tile, overlap, blend)  # type: ignore[arg-type]
    with pytest.raises(TensorError):
        Tiled(vae, (8, 8), 2, 1).encode(torch.zeros(1, 3, 5, 12, 16))
    with pytest.raises(TensorError):
        Tiled(vae, (8, 8), 2, 1).decoder().push(torch.zeros(4, 2, 2))
