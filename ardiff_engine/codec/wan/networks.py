# SPDX-License-Identifier: Apache-2.0
"""The two halves of a Wan autoencoder, on one piece of a video at a time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ardiff_engine.codec.past import Past
from ardiff_engine.codec.wan.blocks import Head, Middle
from ardiff_engine.codec.wan.causal import CausalConv3d
from ardiff_engine.codec.wan.stages import down_layers, up_layers

HALVES_TIME = (False, True, True)
"""Of the encoder's first three stages; the decoder goes the other way."""


class Encoder(nn.Module):
    """The first frame, then four at a time: [B, c, 1 or 4, H, W] -> moments [B, 2 C, 1, H/8, W/8]."""

    def __init__(
        self, pixel_channels: int, widths: Sequence[int], channels: int, res_blocks: int, residual: bool
    ) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(pixel_channels, widths[0], (3, 3, 3))
        self.downsamples = down_layers(widths, res_blocks, HALVES_TIME, residual)
        self.middle = Middle(widths[-1])
        self.head = Head(widths[-1], 2 * channels)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        x = self.conv1(x, past)
        for layer in self.downsamples:
            x = layer(x, past)
        return self.head(self.middle(x, past), past)


class PixelDecoder(nn.Module):
    """One latent [B, C, 1, h, w] -> its frames [B, c, 1 or 4, 8 h, 8 w]."""

    def __init__(
        self, pixel_channels: int, widths: Sequence[int], channels: int, res_blocks: int, residual: bool
    ) -> None:
        """widths: from the latents to the pixels."""
        super().__init__()
        self.conv1 = CausalConv3d(channels, widths[0], (3, 3, 3))
        self.middle = Middle(widths[0])
        self.upsamples = up_layers(widths, res_blocks + 1, HALVES_TIME[::-1], residual)
        self.head = Head(widths[-1], pixel_channels)

    def forward(self, z: Tensor, past: Past) -> Tensor:
        x = self.middle(self.conv1(z, past), past)
        for layer in self.upsamples:
            x = layer(x, past)
        return self.head(x, past)
