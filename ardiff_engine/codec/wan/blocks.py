# SPDX-License-Identifier: Apache-2.0
"""Residual block and attention of the Wan autoencoders."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine.codec.past import Past, per_frame
from ardiff_engine.codec.wan.causal import CausalConv3d, ChannelNorm, norm_silu_window


class ResidualBlock(nn.Module):
    """norm, SiLU, conv 3x3x3, norm, SiLU, conv 3x3x3; plus x, through a 1x1x1 conv where widths differ."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        # Numbered as in the published weights; SiLU and the unused dropout have numbers too.
        self.residual = nn.ModuleDict(
            {
                "0": ChannelNorm(channels_in),
                "2": CausalConv3d(channels_in, channels_out, (3, 3, 3)),
                "3": ChannelNorm(channels_out),
                "6": CausalConv3d(channels_out, channels_out, (3, 3, 3)),
            }
        )
        self.shortcut = None
        if channels_in != channels_out:
            self.shortcut = CausalConv3d(channels_in, channels_out, (1, 1, 1))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        layers = self.residual
        first, second = layers["2"], layers["6"]
        assert isinstance(first, CausalConv3d) and isinstance(second, CausalConv3d)
        h = first.convolved(norm_silu_window(layers["0"], first, x, past))
        window = norm_silu_window(layers["3"], second, h, past)
        del h  # one map less beside the convolution, where memory is at its widest
        h = second.convolved(window)
        h += x if self.shortcut is None else self.shortcut(x, past)
        return h


class FrameAttention(nn.Module):
    """One head over the places of each frame alone; plus x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, images=True)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        return x + per_frame(self._attend, x)

    def _attend(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return self.proj(out.transpose(1, 2).unflatten(2, x.shape[2:]))


class Middle(nn.Sequential):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            ResidualBlock(channels, channels), FrameAttention(channels), ResidualBlock(channels, channels)
        )

    def forward(self, x: Tensor, past: Past) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, past)
        return x


class Head(nn.ModuleDict):
    """norm, SiLU, conv 3x3x3. Numbered as in the published weights."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            {"0": ChannelNorm(channels_in), "2": CausalConv3d(channels_in, channels_out, (3, 3, 3))}
        )

    def forward(self, x: Tensor, past: Past) -> Tensor:
        conv = self["2"]
        assert isinstance(conv, CausalConv3d)
        return conv.convolved(norm_silu_window(self["0"], conv, x, past))
