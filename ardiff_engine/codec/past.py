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
        window = self.window(layer, x, count)
        window[:, :, count:] = x
        return self.keep(layer, window, count)

    def window(self, layer: nn.Module, x: Tensor, count: int) -> Tensor:
        """As `before`, but the places of x are yet to be written. Then comes `keep`."""
        batch, channels, frames = x.shape[:3]
        window = x.new_empty(batch, channels, count + frames, *x.shape[3:])
        past = self.frames.get(layer)
        if past is None:
            window[:, :, :count].zero_()
        else:
            window[:, :, :count] = past
        return window

    def keep(self, layer: nn.Module, window: Tensor, count: int) -> Tensor:
        """Remember the last `count` frames of a window that is written; returns it."""
        # A copy: a view would keep all of it alive.
        self.frames[layer] = window[:, :, window.shape[2] - count :].clone()
        return window

    def copy(self, device: torch.device | str | None = None) -> Past:
        return Past({layer: frames.to(device) for layer, frames in self.frames.items()})

    @property
    def nbytes(self) -> int:
        return sum(frames.nbytes for frames in self.frames.values())


class WatchedPast(Past):
    """changed: whether any layer was left with other frames than it had, since this was set to False."""

    __slots__ = ("changed",)

    def __init__(self) -> None:
        super().__init__()
        self.changed = False

    def keep(self, layer: nn.Module, window: Tensor, count: int) -> Tensor:
        before = self.frames.get(layer)
        kept = super().keep(layer, window, count)
        self.changed |= before is None or not torch.equal(before, self.frames[layer])
        return kept


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer for pictures on every frame of x [B, C, T, H, W]."""
    batch, _, frames = x.shape[:3]
    y = layer(x.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (batch, frames)).transpose(1, 2)
