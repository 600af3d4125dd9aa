# SPDX-License-Identifier: Apache-2.0
"""Frames of any size to the size that a model works on."""

from __future__ import annotations

import torch

from ardiff_engine.media.pixels import Pixels

Sides = int | tuple[int, int]
"""Of a square picture, or height and width."""


def resize_and_crop(images: torch.Tensor, size: Sides) -> torch.Tensor:
    """float [T, 3, H, W] -> [T, 3, *size]: just large enough (bicubic, antialiased), centre crop, clamped to
    [0, 1]."""
    height, width = images.shape[-2:]
    rows, columns = (size, size) if isinstance(size, int) else size
    factor = max(rows / height, columns / width)
    shape = (max(rows, round(height * factor)), max(columns, round(width * factor)))
    if shape != (height, width):
        images = torch.nn.functional.interpolate(
            images, size=shape, mode="bicubic", antialias=True, align_corners=False
        )
    top, left = (shape[0] - rows) // 2, (shape[1] - columns) // 2
    return images[..., top : top + rows, left : left + columns].clamp(0, 1)


def cropped_image(frame: Pixels, size: Sides) -> torch.Tensor:
    """uint8 [H, W, 3] -> float32 [3, *size] in [0, 1], by `resize_and_crop`."""
    # A copy, because a picture that was turned has strides that torch does not take over.
    image = torch.from_numpy(frame.copy()).permute(2, 0, 1).contiguous().float().div_(255)
    return resize_and_crop(image[None], size)[0]


def cropped_pixels(frame: Pixels, size: Sides) -> Pixels:
    """uint8 [H, W, 3] -> uint8 [*size, 3], by `resize_and_crop`."""
    return (cropped_image(frame, size) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
