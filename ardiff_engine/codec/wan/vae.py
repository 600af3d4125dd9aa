# SPDX-License-Identifier: Apache-2.0
"""The autoencoder of Wan 2.1 (Wan Team 2025, arXiv 2503.20314): 4x in time, 8x in height and width.

The first frame of a video is a latent of its own; every later latent holds four frames. All convolutions look
back in time only, so a video can be decoded in pieces: a decoder keeps the last input frames of every layer.
Work goes latent by latent, whatever the pieces are. So every split gives the same bits, and memory is bounded
by one latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from os import PathLike

import torch
from torch import Tensor, nn

from ardiff_engine import arguments
from ardiff_engine.codec.past import Past
from ardiff_engine.codec.wan.blocks import Head, Middle, ResidualBlock
from ardiff_engine.codec.wan.causal import CausalConv3d
from ardiff_engine.codec.wan.layout import MEAN, STD, open_vae
from ardiff_engine.codec.wan.resample import Downsample, Upsample
from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.weights.fit import fill

FRAMES_PER_LATENT = 4


class Encoder(nn.Module):
    """Pixels [B, 3, T, H, W] -> moments [B, 2 C, 1 + (T - 1)/4, H/8, W/8]."""

    def __init__(self, widths: Sequence[int], channels: int, res_blocks: int, time: Sequence[bool]) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(3, widths[0], (3, 3, 3))
        self.downsamples = nn.ModuleList()
        for stage, (width_in, width) in enumerate(pairwise([widths[0], *widths])):
            for block in range(res_blocks):
                self.downsamples.append(ResidualBlock(width if block else width_in, width))
            if stage < len(widths) - 1:
                self.downsamples.append(Downsample(width, time=time[stage]))
        self.middle = Middle(widths[-1])
        self.head = Head(widths[-1], 2 * channels)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        x = self.conv1(x, past)
        for layer in self.downsamples:
            x = layer(x, past)
        return self.head(self.middle(x, past), past)


class PixelDecoder(nn.Module):
    """One latent [B, C, 1, h, w] -> its frames [B, 3, 1 or 4, 8 h, 8 w]."""

    def __init__(self, widths: Sequence[int], channels: int, res_blocks: int, time: Sequence[bool]) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(channels, widths[0], (3, 3, 3))
        self.middle = Middle(widths[0])
        self.upsamples = nn.ModuleList()
        width_in = widths[0]
        for stage, width in enumerate(widths):
            for block in range(res_blocks + 1):
                self.upsamples.append(ResidualBlock(width if block else width_in, width))
            if stage < len(widths) - 1:
                # Upsampling halves the width, and the next stage begins with that.
                self.upsamples.append(Upsample(width, width // 2, time=time[stage]))
                width_in = width // 2
        self.head = Head(widths[-1], 3)

    def forward(self, z: Tensor, past: Past) -> Tensor:
        x = self.middle(self.conv1(z, past), past)
        for layer in self.upsamples:
            x = layer(x, past)
        return self.head(x, past)


class WanVAE(nn.Module):
    """Pixels in [-1, 1] and normalised latents; parameter names are the official ones."""

    def __init__(
        self,
        width: int = 96,
        channels: int = 16,
        multipliers: Sequence[int] = (1, 2, 4, 4),
        res_blocks: int = 2,
        mean: Sequence[float] | Tensor = MEAN,
        std: Sequence[float] | Tensor = STD,
    ) -> None:
        """multipliers: of `width`, for each of the four stages. mean, std: [channels], of the latents.

        ConfigError: sizes below 1, another number of stages, mean or std of another length or std <= 0.
        """
        super().__init__()
        if min(width, channels, res_blocks, *multipliers) < 1 or len(multipliers) != 4:
            raise ConfigError(
                f"WanVAE: width {width}, channels {channels}, multipliers {tuple(multipliers)}, res_blocks "
                f"{res_blocks}; expected whole numbers >= 1 and four multipliers."
            )
        self.width, self.channels = width, channels
        self.multipliers, self.res_blocks = tuple(multipliers), res_blocks
        widths = [width * factor for factor in multipliers]
        time = (False, True, True)
        self.encoder = Encoder(widths, channels, res_blocks, time)
        self.conv1 = CausalConv3d(2 * channels, 2 * channels, (1, 1, 1))
        self.conv2 = CausalConv3d(channels, channels, (1, 1, 1))
        # Not by assignment: the official name of this part is also that of the method `decoder`.
        self._modules["decoder"] = PixelDecoder(widths[::-1], channels, res_blocks, time[::-1])
        self.mean: Tensor
        self.std: Tensor
        for name, values in zip(("mean", "std"), self.constants(mean, std, channels), strict=True):
            self.register_buffer(name, values, persistent=False)

    @classmethod
    def from_file(
        cls,
        path: str | PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> WanVAE:
        """Read safetensors, or a diffusers folder, with official or diffusers' names; see `layout.open_vae`.

        CheckpointError, before any weight is read: names or shapes of something else.
        """
        found = open_vae(arguments.path("path", path))
        with torch.device("meta"):
            vae = cls(found.width, found.channels, found.multipliers, found.res_blocks, found.mean, found.std)
        fill(vae, found.file, found.names, shapes=found.shapes, device=device, dtype=dtype)
        vae.mean, vae.std = vae.mean.to(dtype), vae.std.to(dtype)
        return vae.eval().requires_grad_(False)

    @staticmethod
    def constants(
        mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor, channels: int
    ) -> tuple[Tensor, Tensor]:
        """float32 [1, channels, 1, 1, 1] each, on the CPU. ConfigError: not such numbers, or a std <= 0."""
        found = []
        for name, values in (("mean", mean), ("std", std)):
            try:
                column = torch.tensor([float(value) for value in values], device="cpu", dtype=torch.float32)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"WanVAE: {name} is {values!r}; expected {channels} numbers.") from error
            good = column > 0 if name == "std" else column.isfinite()
            if len(column) != channels or not bool((good & column.isfinite()).all()):
                raise ConfigError(
                    f"WanVAE: {name} has {len(column)} values; expected {channels}, finite, std > 0."
                )
            found.append(column.reshape(1, channels, 1, 1, 1))
        return found[0], found[1]

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, 1 + 4k, 8 h, 8 w] in [-1, 1] -> normalised latents [B, channels, 1 + k, h, w] (the mean of
        the posterior). TensorError: other numbers of frames, or sizes that 8 does not divide."""
        self._check_pixels(pixels)
        past, moments = Past(), []
        for piece in (pixels[:, :, :1], *pixels[:, :, 1:].split(FRAMES_PER_LATENT, dim=2)):
            if piece.shape[2]:
                moments.append(self.conv1(self.encoder(piece, past), past))
        mean = torch.cat(moments, dim=2)[:, : self.channels]
        return (mean - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, channels, F, h, w] -> [B, 3, 1 + 4 (F - 1), 8 h, 8 w], not clamped."""
        return VideoDecoder(self).next(latents)

    def decoder(self) -> VideoDecoder:
        """For a new video whose latents come in pieces."""
        return VideoDecoder(self)

    @property
    def pixel_decoder(self) -> nn.Module:
        return self._modules["decoder"]  # type: ignore[return-value]

    def bytes_per_stream(self, height: int, width: int) -> int:
        """Of the features that a decoder of one video keeps, for pictures of height x width pixels."""
        with torch.device("meta"):
            past = Past()
            shape = (1, self.channels, 1, height // 8, width // 8)
            widths = [self.width * factor for factor in self.multipliers[::-1]]
            decoder = PixelDecoder(widths, self.channels, self.res_blocks, (True, True, False))
            decoder.to(self.mean.dtype)
            for _ in range(2):
                decoder(torch.empty(shape, dtype=self.mean.dtype), past)
        return past.nbytes

    def _check_pixels(self, pixels: Tensor) -> None:
        if (
            pixels.dim() != 5
            or pixels.shape[1] != 3
            or pixels.shape[2] % FRAMES_PER_LATENT != 1
            or pixels.shape[3] % 8
            or pixels.shape[4] % 8
            or not pixels.is_floating_point()
        ):
            raise TensorError(
                f"pixels: got {pixels.dtype} {list(pixels.shape)}; expected floating [B, 3, 1 + 4k, H, W], "
                "where 8 divides H and W."
            )


class VideoDecoder:
    """Decodes one video, latent by latent, and keeps what the next one needs of those before."""

    def __init__(self, vae: WanVAE) -> None:
        self._vae = vae
        self._past = Past()

    def push(self, latents: Tensor) -> Tensor:
        """The next n latents [n, channels, h, w] -> frames [m, 3, 8 h, 8 w], not clamped.

        m = 4n, but 1 + 4 (n - 1) at the start of the video.
        """
        if latents.dim() != 4:
            raise TensorError(f"latents: got {list(latents.shape)}; expected [n, channels, h, w].")
        return self.next(latents.transpose(0, 1)[None])[0].transpose(0, 1)

    @torch.no_grad()
    def next(self, latents: Tensor) -> Tensor:
        """As `push`, for a batch of videos of one length: [B, channels, n, h, w] -> [B, 3, m, 8 h, 8 w]."""
        vae = self._vae
        if latents.dim() != 5 or latents.shape[1] != vae.channels or not latents.shape[2]:
            raise TensorError(
                f"latents: got {list(latents.shape)}; expected [B, {vae.channels}, at least 1, h, w]."
            )
        z = latents.to(vae.mean.dtype) * vae.std + vae.mean
        pieces = [
            vae.pixel_decoder(vae.conv2(latent, self._past), self._past) for latent in z.split(1, dim=2)
        ]
        return torch.cat(pieces, dim=2)

    @property
    def nbytes(self) -> int:
        """Of the features kept now."""
        return self._past.nbytes
