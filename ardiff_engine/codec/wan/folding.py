# SPDX-License-Identifier: Apache-2.0
"""Places and frames folded into channels and back: the pixel patches of Wan 2.2, and its shortcuts without
parameters."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def fold(x: Tensor, time: int, space: int) -> Tensor:
    """[B, C, T, H, W] -> [B, C·time·space², T/time, H/space, W/space], the original channel outermost, then
    frame, row, column."""
    x = x.unflatten(4, (-1, space)).unflatten(3, (-1, space)).unflatten(2, (-1, time))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def unfold(x: Tensor, time: int, space: int) -> Tensor:
    """The way back from `fold`."""
    x = x.unflatten(1, (-1, time, space, space))
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def to_patches(pixels: Tensor, size: int) -> Tensor:
    """[B, C, T, H, W] -> [B, C·size², T, H/size, W/size]; in a patch the column comes before the row."""
    return fold(pixels.transpose(3, 4), 1, size).transpose(3, 4)


def from_patches(x: Tensor, size: int) -> Tensor:
    """The way back from `to_patches`."""
    return unfold(x.transpose(3, 4), 1, size).transpose(3, 4)


def averaged(x: Tensor, channels: int, time: int, space: int) -> Tensor:
    """Folded, and means of neighbouring channels: [B, channels, ceil(T/time), H/space, W/space].

    Frames of zeros in front where `time` does not divide T.
    """
    x = fold(F.pad(x, (0, 0, 0, 0, -x.shape[2] % time, 0)), time, space)
    return x.unflatten(1, (channels, -1)).mean(dim=2)


def repeated(x: Tensor, channels: int, time: int, space: int) -> Tensor:
    """Every channel several times, unfolded: [B, channels, T·time, H·space, W·space]."""
    return unfold(x.repeat_interleave(channels * time * space**2 // x.shape[1], dim=1), time, space)
