# SPDX-License-Identifier: Apache-2.0
"""Half or twice the size, in the picture and, for some stages, in time."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine.codec.past import Past, per_frame
from ardiff_engine.codec.wan.causal import CausalConv3d


class Downsample(nn.Module):
    """3x3 convolution of stride 2, zeros to the right and below.

    time: then 3x1x1 of stride 2 over the frames. The first frame of a video is left as it is."""

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = None
        if time:
            self.time_conv = CausalConv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1), looks_back=1)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        x = per_frame(lambda image: self.resample["1"](F.pad(image, (0, 1, 0, 1))), x)
        if self.time_conv is None:
            return x
        if self.time_conv not in past.frames:
            past.frames[self.time_conv] = x[:, :, -1:].clone()
            return x
        return self.time_conv(x, past)


class Upsample(nn.Module):
    """Every pixel twice each way, and a 3x3 convolution.

    time: before that a 3x1x1 convolution to twice the channels, which become two frames. The first latent of
    a video is left as it is; the second one sees zeros in its place.
    """

    def __init__(self, channels_in: int, channels_out: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels_in, channels_out, 3, padding=1)})
        self.time_conv = CausalConv3d(channels_in, 2 * channels_in, (3, 1, 1)) if time else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        time = self.time_conv
        if time is not None:
            if time not in past.frames:
                past.frames[time] = x.new_zeros(*x.shape[:2], time.looks_back, *x.shape[3:])
            else:
                # The first half of the channels is the earlier frame.
                x = time(x, past).unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        conv: nn.Conv2d = self.resample["1"]  # type: ignore[assignment]
        batch, _, frames, height, width = x.shape
        y = x.new_empty(batch, conv.out_channels, frames, 2 * height, 2 * width)
        # Frame by frame: all of them enlarged are the largest tensor of a decoder.
        for frame in range(frames):
            image = F.interpolate(x[:, :, frame], scale_factor=2.0, mode="nearest-exact")
            y[:, :, frame] = conv(image)
        return y
