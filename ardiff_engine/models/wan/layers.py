# SPDX-License-Identifier: Apache-2.0
"""The parts of a Wan transformer; parameter names are the official ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine.models.wan.config import WanConfig

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k, v [B, T, heads, D], normalised and not rotated -> [B, T, heads, D]"""


class FullRMSNorm(nn.Module):
    """x / rms(x)·weight over all channels, before they are split into heads."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(wide, x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


class SelfAttention(nn.Module):
    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = FullRMSNorm(width, config.eps), FullRMSNorm(width, config.eps)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(x)), self.v(x)
        return self.o(attend(*(t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))).flatten(-2))


class CrossAttention(nn.Module):
    """To the rows of the prompt. Image-to-video models of Wan 2.1 add attention to CLIP's image rows."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = FullRMSNorm(width, config.eps), FullRMSNorm(width, config.eps)
        if config.image_dim is not None:
            self.k_img, self.v_img = nn.Linear(width, width), nn.Linear(width, width)
            self.norm_k_img = FullRMSNorm(width, config.eps)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """[B, rows, heads, D] each; they depend on the prompt and the layer alone."""
        return self._split(self.norm_k(self.k(text))), self._split(self.v(text))

    def picture_keys_values(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The same of a picture's rows, for models with `image_dim`."""
        return self._split(self.norm_k_img(self.k_img(image))), self._split(self.v_img(image))

    def forward(self, x: Tensor, text: Tensor, image: Tensor | None) -> Tensor:
        q = self._split(self.norm_q(self.q(x)))
        out = dense_attention(q, *self.keys_values(text))
        if image is not None:
            out = out + dense_attention(q, *self.picture_keys_values(image))
        return self.o(out.flatten(-2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class Block(nn.Module):
    """m = modulation of a frame (shift, scale, gate for self-attention, the same for the MLP):

        x += gate1·SelfAttention(norm(x)·(1 + scale1) + shift1)
        x += CrossAttention(norm3(x))
        x += gate2·MLP(norm(x)·(1 + scale2) + shift2)

    norm: LayerNorm without weights.
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=config.eps, elementwise_affine=False)
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(width, eps=config.eps)
        self.cross_attn = CrossAttention(config)
        self.norm2 = nn.LayerNorm(width, eps=config.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(width, config.mlp_width),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.mlp_width, width),
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, width) / width**0.5)

    def forward(self, x: Tensor, time: Tensor, attend: Attend, text: Tensor, image: Tensor | None) -> Tensor:
        """x [B, F, tokens, width]; time [B, F, tokens or 1, 6, width]; text [B, rows, width]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation[0] + time).unbind(3)
        frames = x.shape[1]
        seen = (self.norm1(x) * (1 + scale1) + shift1).flatten(1, 2)
        x = x + gate1 * self.self_attn(seen, attend).unflatten(1, (frames, -1))
        x = x + self.cross_attn(self.norm3(x).flatten(1, 2), text, image).unflatten(1, (frames, -1))
        return x + gate2 * self.ffn(self.norm2(x) * (1 + scale2) + shift2)


class Head(nn.Module):
    """norm(x)·(1 + scale) + shift with the frame's time embedding, then the values of a token's patch."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        rows, columns = config.patch[1:]
        self.norm = nn.LayerNorm(config.width, eps=config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.width, rows * columns * config.out_channels)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.width) / config.width**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, F, tokens, width]; time [B, F, tokens or 1, width]."""
        shift, scale = (self.modulation[0] + time[..., None, :]).unbind(3)
        return self.head(self.norm(x) * (1 + scale) + shift)


class ImageEmbedding(nn.Module):
    """CLIP's image tokens [B, rows, image_dim] to the width of the model."""

    def __init__(self, image_dim: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(image_dim),
            nn.Linear(image_dim, image_dim),
            nn.GELU(),
            nn.Linear(image_dim, width),
            nn.LayerNorm(width),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ/√D) v over [B, T, heads, D]; mask: bool [queries, keys], True where seen."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # The gradient of SDPA in bfloat16 takes 1.5 to 5 times as long there.
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
