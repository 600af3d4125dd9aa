# SPDX-License-Identifier: Apache-2.0
"""Residual blocks between two sizes: one after the other (Wan 2.1), or with a shortcut around each stage
(Wan 2.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor, nn

from ardiff_engine.codec.past import Past
from ardiff_engine.codec.wan.blocks import ResidualBlock
from ardiff_engine.codec.wan.folding import averaged, repeated
from ardiff_engine.codec.wan.resample import Downsample, Upsample
from ardiff_engine.errors import ConfigError


class DownStage(nn.Module):
    """Residual blocks, and half the size if `space` is 2; plus the input, folded and averaged."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, time: int, space: int) -> None:
        super().__init__()
        self.downsamples = nn.ModuleList(_blocks(channels_in, channels_out, blocks))
        if space == 2:
            self.downsamples.append(Downsample(channels_out, time=time == 2))
        self._to = channels_out, time, space
        _check_shortcut(channels_in * time * space**2, channels_out)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        y = x
        for layer in self.downsamples:
            y = layer(y, past)
        return y + averaged(x, *self._to)


class UpStage(nn.Module):
    """Residual blocks, and twice the size if `space` is 2; then plus the input, repeated."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, time: int, space: int) -> None:
        super().__init__()
        self.upsamples = nn.ModuleList(_blocks(channels_in, channels_out, blocks))
        self._to = channels_out, time, space
        if space == 2:
            self.upsamples.append(Upsample(channels_out, channels_out, time=time == 2))
            _check_shortcut(channels_out * time * space**2, channels_in)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        y = x
        for layer in self.upsamples:
            y = layer(y, past)
        channels, time, space = self._to
        if space == 1:
            return y
        # Of the first latent only one frame comes: the last one.
        return y + repeated(x, channels, time, space)[:, :, -y.shape[2] :]


def down_layers(widths: Sequence[int], blocks: int, time: Sequence[bool], residual: bool) -> nn.ModuleList:
    """Stage by stage from widths[0]; time: whether a stage halves the frames too. The last one has no
    resampling."""
    layers = nn.ModuleList()
    for stage, (width_in, width) in enumerate(pairwise([widths[0], *widths])):
        last = stage == len(widths) - 1
        if residual:
            factors = (1, 1) if last else (1 + time[stage], 2)
            layers.append(DownStage(width_in, width, blocks, *factors))
            continue
        layers.extend(_blocks(width_in, width, blocks))
        if not last:
            layers.append(Downsample(width, time=time[stage]))
    return layers


def up_layers(widths: Sequence[int], blocks: int, time: Sequence[bool], residual: bool) -> nn.ModuleList:
    """Stage by stage from widths[0], the last one without resampling."""
    layers = nn.ModuleList()
    width_in = widths[0]
    for stage, width in enumerate(widths):
        last = stage == len(widths) - 1
        if residual:
            factors = (1, 1) if last else (1 + time[stage], 2)
            layers.append(UpStage(width_in, width, blocks, *factors))
            width_in = width
            continue
        layers.extend(_blocks(width_in, width, blocks))
        if not last:
            # Upsampling halves the width, and the next stage begins with that.
            layers.append(Upsample(width, width // 2, time=time[stage]))
            width_in = width // 2
    return layers


def _check_shortcut(channels: int, parts: int) -> None:
    if channels % parts:
        raise ConfigError(
            f"multipliers: a shortcut would need {channels} / {parts} channels, a whole number. Wan 2.2 has "
            "(1, 2, 4, 4)."
        )


def _blocks(channels_in: int, channels_out: int, count: int) -> Iterator[ResidualBlock]:
    for block in range(count):
        yield ResidualBlock(channels_out if block else channels_in, channels_out)
