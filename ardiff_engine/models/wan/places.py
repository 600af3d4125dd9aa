# SPDX-License-Identifier: Apache-2.0
"""Where in the picture a latent is, as channels beside it.

Rotary positions tell a network how far apart two tokens are, and nothing of where they are: pure noise looks
alike everywhere, and a small network takes long to count how many tokens there are on each side.
"""

from __future__ import annotations

import torch
from torch import Tensor


def place_channels(count: int, height: int, width: int) -> Tensor:
    """float32 [count, height, width], count even: cos(π k y) for k = 1 .. count / 2, y from 0 to 1 down the
    picture, then the same across."""
    waves = torch.arange(1, count // 2 + 1)[:, None] * torch.pi
    down = ((torch.arange(height) + 0.5) / height * waves).cos()
    across = ((torch.arange(width) + 0.5) / width * waves).cos()
    return torch.cat([down[:, :, None].expand(-1, -1, width), across[:, None].expand(-1, height, -1)])


def with_places(latents: Tensor, count: int) -> Tensor:
    """[..., C, h, w] -> [..., C + count, h, w]"""
    if not count:
        return latents
    places = place_channels(count, *latents.shape[-2:]).to(latents)
    return torch.cat([latents, places.expand(*latents.shape[:-3], -1, -1, -1)], dim=-3)
