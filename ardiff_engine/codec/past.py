# SPDX-License-Identifier: Apache-2.0
"""The memory that lets a video come in pieces."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Past:
    """The last input frames of every causal layer of one video: what its next piece needs of those before.

    Tensors are replaced, never written to. So a copy shares them until its next piece.
    """

    __slots__ = ("frames",)

    def __init__(self, frames: dict[nn.Module, Tensor] | None = None) -> None:
        self.frames: dict[nn.Module, Tensor] = {} if frames is None else frames

    def before(self, layer: nn.Module, x: Tensor, count: int) -> Tensor:
        """x [B, C, T, H, W] with the `count` frames before it in front, zeros at the start of a video."""
        past = self.frames.get(layer)
        if past is None:
            past = x.new_zeros(*x.shape[:2], count, *x.shape[3:])
        x = torch.cat([past, x], dim=2)
        # A copy: a view would keep all of x alive.
        self.frames[layer] = x[:, :, x.shape[2] - count :].clone()
        return x

    def copy(self, device: torch.device | str | None = None) -> Past:
        return Past({layer: frames.to(device) for layer, frames in self.frames.items()})

    @property
    def nbytes(self) -> int:
        return sum(frames.nbytes for frames in self.frames.values())


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer for pictures on every frame of x [B, C, T, H, W]."""
    batch, _, frames = x.shape[:3]
    y = layer(x.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (batch, frames)).transpose(1, 2)
