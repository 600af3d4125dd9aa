# SPDX-License-Identifier: Apache-2.0
"""TAEHV (github.com/madebyollin/taehv), the light autoencoder for Wan 2.1's latents.

2-D convolutions, and blocks that see one frame back: for previews and live streams. A latent becomes four
frames, and the first three of a video are dropped: 1 + 4 (F − 1), as with `WanVAE`. A decoder keeps the
last input frame of each of its nine blocks. So pieces of any length give the same frames, bit for bit.
"""

from __future__ import annotations

from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine.codec.past import Past, per_frame
from ardiff_engine.errors import TensorError
from ardiff_engine.weights.fit import fill
from ardiff_engine.weights.safetensors_file import SafetensorsFile

DROPPED = 3
"""Frames at the start of a video that no pixel belongs to."""
FRAMES_PER_LATENT = 4


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

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, 4 F, 8 h, 8 w] in [0, 1] -> normalised latents [B, channels, F, h, w]."""
        if pixels.dim() != 5 or pixels.shape[1] != 3 or pixels.shape[2] % 4 or not pixels.shape[2]:
            raise TensorError(f"pixels: got {list(pixels.shape)}, expected [B, 3, 4 F, H, W].")
        past, x = Past(), pixels
        for name, layer in self.encoder.items():
            x = layer(x, past) if isinstance(layer, Join | MemoryBlock) else per_frame(layer, x)
            x = F.relu(x) if name == "0" else x
        return x

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, channels, F, h, w] -> [B, 3, 1 + 4 (F − 1), 8 h, 8 w], not
        clamped to [0, 1]."""
        return LightDecoder(self).next(latents)

    def decoder(self) -> LightDecoder:
        """For a new video whose latents come in pieces."""
        return LightDecoder(self)

    def bytes_per_stream(self, height: int, width: int) -> int:
        """Of the features that a decoder of one video keeps, for pictures of height x width pixels."""
        places = (height // 8) * (width // 8)
        values = 3 * (256 + 128 * 4 + 64 * 16) * places
        return values * next(self.parameters()).element_size()


class LightDecoder:
    """Decodes one video, latent by latent."""

    def __init__(self, model: TAEHV) -> None:
        self._model = model
        self._past = Past()
        self._dropped = False

    def push(self, latents: Tensor) -> Tensor:
        """The next n latents [n, channels, h, w] -> frames [4 n, 3, 8 h, 8 w], 3 fewer at the start."""
        if latents.dim() != 4:
            raise TensorError(f"latents: got {list(latents.shape)}, expected [n, channels, h, w].")
        return self.next(latents.transpose(0, 1)[None])[0].transpose(0, 1)

    @torch.no_grad()
    def next(self, latents: Tensor) -> Tensor:
        """As `push`, for a batch of videos of one length: [B, channels, n, h, w] -> [B, 3, m, 8 h, 8 w]."""
        channels = self._model.channels
        if latents.dim() != 5 or latents.shape[1] != channels or not latents.shape[2]:
            raise TensorError(
                f"latents: got {list(latents.shape)}, expected [B, {channels}, at least 1, h, w]."
            )
        frames = torch.cat([self._decode(latent) for latent in latents.split(1, dim=2)], dim=2)
        if not self._dropped:
            frames, self._dropped = frames[:, :, DROPPED:], True
        return frames

    @property
    def nbytes(self) -> int:
        """Of the features kept now."""
        return self._past.nbytes

    def _decode(self, latent: Tensor) -> Tensor:
        layers = self._model._modules["decoder"]
        assert isinstance(layers, nn.ModuleDict)
        x = 3 * torch.tanh(latent.to(next(self._model.parameters()).dtype) / 3)
        for name, layer in layers.items():
            if isinstance(layer, Grow):
                x = per_frame(lambda image: F.interpolate(image, scale_factor=2.0, mode="nearest"), x)
            if name == "22":
                x = F.relu(x)
            x = layer(x, self._past) if isinstance(layer, Grow | MemoryBlock) else per_frame(layer, x)
            x = F.relu(x) if name == "1" else x
        return x
