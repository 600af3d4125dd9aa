# SPDX-License-Identifier: Apache-2.0
"""Frames of any size to the squares that the models work on."""

from __future__ import annotations

import torch

from ardiff_engine.media.pixels import Pixels


def resize_and_crop(images: torch.Tensor, size: int) -> torch.Tensor:
    """float [T, 3, H, W] -> [T, 3, size, size]: shorter side to `size` (bicubic, antialiased), centre crop,
    clamped to [0, 1]."""
    height, width = images.shape[-2:]
    factor = size / min(height, width)
    shape = (max(size, round(height * factor)), max(size, round(width * factor)))
    if shape != (height, width):
        images = torch.nn.functional.interpolate(
            images, size=shape, mode="bicubic", antialias=True, align_corners=False
        )
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return images[..., top : top + size, left : left + size].clamp(0, 1)


def square_image(frame: Pixels, size: int) -> torch.Tensor:
    """uint8 [H, W, 3] -> float32 [3, size, size] in [0, 1], by `resize_and_crop`."""
    # A copy, because a picture that was turned has strides that torch does not take over.
    image = torch.from_numpy(frame.copy()).permute(2, 0, 1).contiguous().float().div_(255)
    return resize_and_crop(image[None], size)[0]


def square_pixels(frame: Pixels, size: int) -> Pixels:
    """uint8 [H, W, 3] -> uint8 [size, size, 3], by `resize_and_crop`."""
    return (square_image(frame, size) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
