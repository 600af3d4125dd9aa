# SPDX-License-Identifier: Apache-2.0
"""TAEHV (github.com/madebyollin/taehv), the light autoencoder for Wan 2.1's latents.

2-D convolutions, and blocks that see one frame back: for previews and live streams. A latent becomes four
frames, and the first three of a video are dropped: 1 + 4 (F − 1), as with `WanVAE`. A decoder keeps the
last input frame of each of its nine blocks. So pieces of any length give the same frames, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine.codec.past import Past, per_frame
from ardiff_engine.codec.protocol import Size
from ardiff_engine.codec.video import FRAMES_PER_LATENT, VideoDecoder, VideoEncoder, encode_whole, latent_size
from ardiff_engine.weights.fit import fill
from ardiff_engine.weights.safetensors_file import SafetensorsFile

DROPPED = 3
"""Frames at the start of a video that no pixel belongs to."""


@dataclass(frozen=True, slots=True)
class TAEHVFile:
    """What a file holds, before any weight is read."""

    file: SafetensorsFile
    channels: int

    @classmethod
    def open(cls, path: str | PathLike[str]) -> TAEHVFile | None:
        """None: a file of something else. CheckpointError: a damaged one."""
        file = SafetensorsFile(path)
        if not {"encoder.17.weight", "decoder.1.weight"} <= file.shapes.keys():
            return None
        return cls(file, file.shapes["encoder.17.weight"][0])

    def empty(self) -> TAEHV:
        """The model without its weights."""
        with torch.device("meta"):
            return TAEHV(self.channels)


class MemoryBlock(nn.Module):
    """ReLU(conv(ReLU(conv(ReLU(conv([x, x one frame earlier]))))) + x), 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor, past: Past) -> Tensor:
        earlier = past.before(self, x, 1)[:, :, :-1]
        return F.relu(per_frame(self.conv, torch.cat([x, earlier], dim=1)) + x)


class Grow(nn.Module):
    """1x1 convolution to `factor` times the channels, which become that many frames."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(channels, channels * factor, 1, bias=False)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        y = per_frame(self.conv, x).unflatten(1, (self.factor, -1))
        return y.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)


class Join(nn.Module):
    """`factor` frames side by side in the channels, and a 1x1 convolution back to the number of one."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(channels * factor, channels, 1, bias=False)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        joined = x.unflatten(2, (-1, self.factor)).permute(0, 3, 1, 2, 4, 5).flatten(1, 2)
        return per_frame(self.conv, joined)


class TAEHV(nn.Module):
    """Parameter names are those of the published weights."""

    black = 0.0
    scale = 8
    patch = 1
    decoder_width = 64
    residual = False
    frames_per_latent = FRAMES_PER_LATENT
    first_frames = FRAMES_PER_LATENT
    feature_maps = 3
    """Maps [64, 4 frames, 8 h, 8 w] that the decoding of a latent holds at its widest point, beside the
    state: the input of the first convolution at full size, oneDNN's copy of it, and the result."""
    reach = 8
    """Latents before a frame that it depends on: six memory blocks see one latent back, three see half of
    one."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.channels = channels
        widths = (256, 128, 64)
        decoder: dict[str, nn.Module] = {"1": nn.Conv2d(channels, widths[0], 3, padding=1)}
        at = 3
        for width, following, factor in zip(widths, (128, 64, 64), (1, 2, 2), strict=True):
            for _ in range(3):
                decoder[str(at)] = MemoryBlock(width)
                at += 1
            decoder[str(at + 1)] = Grow(width, factor)
            decoder[str(at + 2)] = nn.Conv2d(width, following, 3, padding=1, bias=False)
            at += 3
        decoder[str(at + 1)] = nn.Conv2d(64, 3, 3, padding=1)
        encoder: dict[str, nn.Module] = {"0": nn.Conv2d(3, 64, 3, padding=1)}
        at = 2
        for factor in (2, 2, 1):
            encoder[str(at)] = Join(64, factor)
            encoder[str(at + 1)] = nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False)
            for block in range(3):
                encoder[str(at + 2 + block)] = MemoryBlock(64)
            at += 5
        encoder[str(at)] = nn.Conv2d(64, channels, 3, padding=1)
        self.encoder = nn.ModuleDict(encoder)
        # Not by assignment: the name of this part is also that of the method `decoder`.
        self._modules["decoder"] = nn.ModuleDict(decoder)

    @classmethod
    def from_file(
        cls,
        path: str | PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> TAEHV:
        """Read the published weights from safetensors. CheckpointError: a file of something else."""
        file = SafetensorsFile(path)
        last = file.shapes.get("encoder.17.weight", (16,))
        with torch.device("meta"):
            model = cls(last[0])
        names = {name: name for name in file.shapes}
        fill(model, file, names, shapes=file.shapes, device=device, dtype=dtype)
        return model.eval().requires_grad_(False)

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, 4 F, 8 h, 8 w] in [0, 1] -> normalised latents [B, channels, F, h, w]."""
        return encode_whole(self, pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, channels, F, h, w] -> [B, 3, 1 + 4 (F − 1), 8 h, 8 w], not
        clamped to [0, 1]."""
        return VideoDecoder(self).next(latents)

    def decoder(self, given: Tensor | None = None) -> VideoDecoder:
        """For a video whose latents come in pieces, after the latents `given` [P, channels, h, w]. Only the
        last `reach` of those are decoded again."""
        return VideoDecoder(self, None if given is None else given[-self.reach :])

    def video_encoder(self) -> VideoEncoder:
        """For a video whose frames come in pieces."""
        return VideoEncoder(self)

    def history(self, frame: int) -> int:
        """The first latent that matters for the frames from latent `frame` on."""
        return max(0, frame - self.reach)

    def bytes_per_stream(self, size: Size) -> int:
        """Of the features that a decoder of one video keeps; size: height and width of its latents."""
        height, width = latent_size(size)
        values = 3 * (256 + 128 * 4 + 64 * 16) * height * width
        return values * next(self.parameters()).element_size()

    def encode_piece(self, pixels: Tensor, past: Past) -> Tensor:
        x = pixels.to(next(self.parameters()))
        for name, layer in self.encoder.items():
            x = layer(x, past) if isinstance(layer, Join | MemoryBlock) else per_frame(layer, x)
            x = F.relu(x) if name == "0" else x
        return x

    def decode_latent(self, latent: Tensor, past: Past) -> Tensor:
        layers = self._modules["decoder"]
        assert isinstance(layers, nn.ModuleDict)
        starts = not past.frames
        x = 3 * torch.tanh(latent.to(next(self.parameters())) / 3)
        for name, layer in layers.items():
            if isinstance(layer, Grow):
                x = per_frame(lambda image: F.interpolate(image, scale_factor=2.0, mode="nearest"), x)
            if name == "22":
                x = F.relu(x)
            x = layer(x, past) if isinstance(layer, Grow | MemoryBlock) else per_frame(layer, x)
            x = F.relu(x) if name == "1" else x
        return x[:, :, DROPPED:] if starts else x
