# SPDX-License-Identifier: Apache-2.0
"""The clip decoder: causal, in independent clips, and equal to a slow reference on torch's own attention."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from official_keys import generate_weights
from test_titok import TINY
from torch import Tensor, nn

from ardiff_engine.errors import TensorError
from ardiff_engine.models import TiTok

FRAMES = 3
CONFIG = dataclasses.replace(TINY, temporal=True, num_frames=FRAMES, decoder_layers=2)


@pytest.fixture(scope="module")
def model() -> TiTok:
    model = TiTok(CONFIG).double().eval()
    generate_weights(model)
    return model


def latents(frames: int) -> Tensor:
    return torch.randn(2, frames, 3, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def torch_attention(source: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attention = nn.MultiheadAttention(CONFIG.decoder_width, CONFIG.decoder_heads, batch_first=True).double()
    attention.load_state_dict(source.state_dict())
    return attention(query[None], key[None], value[None], need_weights=False)[0][0]


def slow_logits(model: TiTok, z: Tensor) -> Tensor:
    """One clip z [F, c, 1, K], frame by frame, position by position; views are cut out, nothing is masked."""
    d, positions, count = model.decoder, CONFIG.grid**2, CONFIG.num_latent_tokens
    frames = []
    for frame in z:
        tokens = frame[:, 0].T
        tokens = tokens / tokens.norm(dim=1, keepdim=True)
        grid = torch.cat([d.class_embedding, d.mask_token[0].repeat(positions, 1)]) + d.positional_embedding
        frames.append(
            d.ln_pre(torch.cat([grid, d.decoder_embed(tokens) + d.latent_token_positional_embedding]))
        )
    for fine, coarse, block in zip(
        d.fine_temporal_blocks, d.coarse_temporal_blocks, d.transformer, strict=True
    ):
        entered = [frame[1 + positions :] for frame in frames]
        before = [frame[1 : 1 + positions] for frame in frames]
        after = []
        for t, frame in enumerate(frames):
            pixels = before[t].clone()
            for p in range(positions):
                past = fine.ln_1(torch.stack([before[s][p] for s in range(t + 1)]))
                pixels[p] = before[t][p] + torch_attention(fine.attn, past[-1:], past, past)[0]
            query = torch.cat([entered[t], pixels])
            source = torch.cat(entered[: t + 1])
            query = query + torch_attention(
                coarse.attn, coarse.ln_q(query), coarse.ln_k(source), coarse.ln_v(source)
            )
            x = torch.cat([frame[:1], query[count:], query[:count]])
            normed = block.ln_1(x)
            x = x + torch_attention(block.attn, normed, normed, normed)
            after.append(x + block.mlp(block.ln_2(x)))
        frames = after
    out = torch.stack([d.ln_post(frame[1 : 1 + positions]).T for frame in frames])
    return d.ffn(out.unflatten(2, (CONFIG.grid, CONFIG.grid)))


@torch.no_grad()
def test_equals_slow_reference(model: TiTok) -> None:
    z = latents(FRAMES)[0]
    torch.testing.assert_close(model.decoder(z), slow_logits(model, z), rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("changed", range(FRAMES))
def test_strictly_causal(model: TiTok, changed: int) -> None:
    z = latents(FRAMES)
    other = z.clone()
    other[:, changed] = -other[:, changed]
    difference = (model.decode(z) - model.decode(other)).abs().amax(dim=(0, 2, 3, 4))
    assert float(difference[:changed].sum()) == 0.0
    assert bool((difference[changed:] > 1e-6).all())


@torch.no_grad()
@pytest.mark.parametrize("frames_per_pass", [1, 4, 100])
def test_long_videos_are_independent_clips(model: TiTok, frames_per_pass: int) -> None:
    z = latents(3 * FRAMES)
    whole = model.decode(z, frames_per_pass=frames_per_pass)
    clips = torch.cat([model.decode(part) for part in z.split(FRAMES, dim=1)], dim=1)
    torch.testing.assert_close(whole, clips, rtol=1e-10, atol=1e-10)


def test_partial_clips_are_refused(model: TiTok) -> None:
    with pytest.raises(TensorError, match="multiple"):
        model.decode(latents(4))


@torch.no_grad()
def test_encoder_is_time_agnostic(model: TiTok) -> None:
    images = torch.rand(1, 2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(model.encode(images)[:, 1:], model.encode(images[:, 1:]))


def test_temporal_modules_do_not_start_as_identity() -> None:
    weight = TiTok(CONFIG).decoder.fine_temporal_blocks[0].attn.in_proj_weight
    assert 0.005 < float(weight.detach().std()) < 0.015
