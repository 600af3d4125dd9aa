# SPDX-License-Identifier: Apache-2.0
"""The temporal modules that the clip decoder of `TiTok` runs before each of its blocks (TiTok_KL_wT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ardiff_engine.models.titok.blocks import PackedAttention

TEMPORAL_INIT_STD = 0.01


class FineTemporalBlock(nn.Module):
    """Every grid position looks at itself in the earlier frames: p += attention(ln_1(p)) over frames, causal.

    grid [B, F, P, W] -> [B, F, P, W].
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = PackedAttention(width, heads)

    def forward(self, grid: Tensor) -> Tensor:
        batch, _, positions, _ = grid.shape
        normed = self.ln_1(grid).transpose(1, 2).flatten(0, 1)
        update = self.attn(normed, normed, normed, causal=True)
        return grid + update.unflatten(0, (batch, positions)).transpose(1, 2)


class CoarseTemporalBlock(nn.Module):
    """All tokens of a frame look at the latent tokens of this and of earlier frames, as they entered the
    layer.

    q = [latents | grid]; q += attention(ln_q(q), ln_k(latents), ln_v(latents)).
    latents [B, F, K, W], grid [B, F, P, W], mask from `coarse_mask`; returns the updated (latents, grid).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_q = nn.LayerNorm(width)
        self.ln_k = nn.LayerNorm(width)
        self.ln_v = nn.LayerNorm(width)
        self.attn = PackedAttention(width, heads)

    def forward(self, latents: Tensor, grid: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        frames, count = latents.shape[1:3]
        query = torch.cat([latents, grid], dim=2)
        source = latents.flatten(1, 2)
        update = self.attn(self.ln_q(query).flatten(1, 2), self.ln_k(source), self.ln_v(source), mask)
        query = query + update.unflatten(1, (frames, -1))
        return query[:, :, :count], query[:, :, count:]


def coarse_mask(frames: int, latents: int, positions: int, device: torch.device) -> Tensor:
    """bool [F·(K+P), F·K]: True where the key's frame is not later than the query's frame."""
    query_frame = torch.arange(frames, device=device).repeat_interleave(latents + positions)
    key_frame = torch.arange(frames, device=device).repeat_interleave(latents)
    return key_frame[None, :] <= query_frame[:, None]
