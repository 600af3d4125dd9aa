# SPDX-License-Identifier: Apache-2.0
"""The convolutional decoder from code features to pixels (MaskGIT-VQGAN, no attention)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine.models.titok.config import TiTokConfig

NORM_EPS = 1e-6


class ResBlock(nn.Module):
    """h = conv2(SiLU(norm2(conv1(SiLU(norm1(x)))))); returns h + x, or h + nin_shortcut(h) where channels
    change.

    The published weights were trained with the 1×1 shortcut on the branch output, so x itself is dropped
    there.
    """

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.nin_shortcut = None
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_out, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(h))


class UpLevel(nn.Module):
    """Residual blocks, then nearest ×2 and a 3×3 convolution (not on the finest level)."""

    def __init__(self, channels_in: int, channels_out: int, config: TiTokConfig, upsample: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(channels_in if index == 0 else channels_out, channels_out, config.norm_groups)
            for index in range(config.res_blocks)
        )
        self.upsample_conv = nn.Conv2d(channels_out, channels_out, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.upsample_conv is not None:
            x = self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class PixelDecoder(nn.Module):
    """Code features [N, quantized_channels, g, g] -> image [N, 3, g·patch, g·patch], unbounded."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        channels = [config.hidden_channels * factor for factor in config.channel_multipliers]
        top = channels[-1]
        self.conv_in = nn.Conv2d(config.quantized_channels, top, 3, padding=1)
        self.mid = nn.ModuleList(ResBlock(top, top, config.norm_groups) for _ in range(config.res_blocks))
        self.up = nn.ModuleList(
            UpLevel(channels[min(level + 1, len(channels) - 1)], channels[level], config, upsample=level > 0)
            for level in range(len(channels))
        )
        self.norm_out = nn.GroupNorm(config.norm_groups, channels[0], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(channels[0], config.image_channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Tensor:
        x = self.conv_in(features)
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))
