# SPDX-License-Identifier: Apache-2.0
"""Latent tokens in groups: the same numbers, another cut."""

from __future__ import annotations

import pytest
import torch

import ardiff_engine as ade
from ardiff_engine.errors import ConfigError
from ardiff_engine.models import check_cells, from_tokens, regroup, to_tokens


@pytest.mark.parametrize("tokens", [1, 2, 4, 8, 16])
def test_groups_hold_the_neighbours_and_come_apart_again(tokens: int) -> None:
    x = torch.randn(2, 3, 16, 4, generator=torch.Generator().manual_seed(0))
    grouped = regroup(x, tokens)
    size = 16 // tokens
    assert grouped.shape == (2, 3, tokens, 4 * size)
    assert torch.equal(grouped[..., 0, :], x[..., :size, :].flatten(-2))
    assert torch.equal(regroup(grouped, 16), x)


@pytest.mark.parametrize("got", [(4, 4), (8, 4), (5, 12), (32, 2), (16, 8)])
def test_cells_that_are_no_groups_of_the_tokens(got: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"{got[0]} tokens x {got[1]} channels.*16 x 4"):
        check_cells("model", got, (16, 4))


@pytest.mark.parametrize("got", [(16, 4), (8, 8), (4, 16), (1, 64)])
def test_cells_that_are(got: tuple[int, int]) -> None:
    check_cells("model", got, (16, 4))


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_pipeline_on_groups(tiny_model, tmp_path, tokens: int) -> None:
    """The autoencoder has 4 tokens of 4 channels, the transformer sees fewer and wider ones."""
    small = ade.Pipeline.from_pretrained(tiny_model)
    torch.manual_seed(0)
    config = ade.models.ARDiffusionConfig(
        num_frames=8,
        tokens_per_frame=tokens,
        channels=16 // tokens,
        width=32,
        depth=2,
        heads=2,
        context_tokens=3,
        context_dim=8,
    )
    transformer = ade.models.ARDiffusionTransformer(config)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ade.Pipeline(transformer, small.vae, small.schedule).save_pretrained(tmp_path)
    pipe = ade.Pipeline.from_pretrained(tmp_path)
    video = torch.randint(0, 256, (3, 16, 16, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    out = pipe(num_frames=10, num_inference_steps=4, lag=2, video=video, progress=False)
    assert out.latents.shape == (1, 10, tokens, 16 // tokens)
    with torch.no_grad():
        encoded = to_tokens(pipe.vae.encode(video.permute(0, 3, 1, 2)[None].float() / 255))
        decoded = pipe.vae.decode(from_tokens(regroup(out.latents, 4)))[0]
    torch.testing.assert_close(regroup(out.latents[:, :3], 4), encoded)
    pictures = (decoded.clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
    assert int((pictures[3:] - out.frames[0, 3:].float()).abs().max()) <= 1
