# SPDX-License-Identifier: Apache-2.0
"""Pictures as networks take them, and what turns them into the latent frames of a transformer and back."""

from __future__ import annotations

from typing import Protocol

import torch

from ardiff_engine.codec.protocol import Codec
from ardiff_engine.errors import NumericalError, explain
from ardiff_engine.host_copy import HostCopy


class PictureCodec(Codec, Protocol):
    """A codec of square pictures of one size, uint8 on the CPU."""

    @property
    def image_size(self) -> int:
        """Height and width of every picture."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [T, H, W, 3] -> clean latents, float32 [frames, tokens, channels]."""


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """[n, 3, H, W] in [0, 1] -> uint8 [n, H, W, 3]. NumericalError: NaN or infinity, which have no colour."""
    pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    # Both in one go: on a GPU the thread waits once, and for its own stream only.
    finite, pixels = HostCopy(torch.isfinite(images).all(), pixels).wait()
    if not bool(finite):
        raise NumericalError(
            explain(
                "decoded pictures",
                got="NaN or infinity",
                expected="finite numbers",
                fix="Check the autoencoder's weights.",
            )
        )
    return pixels


def to_images(frames: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [T, H, W, 3] -> [T, 3, size, size] in [0, 1]: shorter side resized (bicubic), centre crop."""
    images = frames.permute(0, 3, 1, 2).float() / 255
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    scale = size / min(height, width)
    resized = (max(size, round(height * scale)), max(size, round(width * scale)))
    images = torch.nn.functional.interpolate(images, size=resized, mode="bicubic", antialias=True)
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    return images[..., top : top + size, left : left + size].clamp(0, 1)
