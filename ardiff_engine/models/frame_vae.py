# SPDX-License-Identifier: Apache-2.0
"""A small convolutional autoencoder of single frames, for Wan transformers that are trained from nothing.

    latents = norm(encoder(patches of 4 x 4 pixels)),  8 pixels to a latent each way

Every frame is a latent of its own, so a decoder has no state and a frame is seen as soon as it is clean. The
latents of the training data have mean 0 and variance 1 in every channel, by construction.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine.ambient import ordinary_mode
from ardiff_engine.codec.protocol import Size
from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.host_copy import read_here
from ardiff_engine.models.pictures import to_images, to_uint8
from ardiff_engine.models.registry import Kind, register
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.settings import MAX_SIZE

PATCH = 4
SCALE = 8
GROUPS = 8
MOMENTUM = 0.01
"""Of the mean and the variance of the latents."""


@dataclass(frozen=True, slots=True)
class FrameVAEConfig:
    """image_size: height and width of a frame, a multiple of 8. channels: of a latent. width: of the layers
    at a quarter of the size, twice as wide at an eighth. res_blocks: at each of the two sizes.

    ConfigError: sizes that are not whole numbers in range or do not fit.
    """

    image_size: int = 64
    channels: int = 8
    width: int = 64
    res_blocks: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
                raise ConfigError(
                    f"FrameVAEConfig.{field.name}: got {value!r}, expected a whole number >= 1."
                )
        if self.image_size % SCALE or self.width % GROUPS:
            raise ConfigError(
                f"FrameVAEConfig: image_size {self.image_size}, width {self.width}; expected multiples of "
                f"{SCALE} and {GROUPS}."
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ResidualBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x))))))"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_norm_silu_conv(width, width), *_norm_silu_conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class FrameVAE(nn.Module):
    """Pixels in [0, 1] and latents of variance 1."""

    def __init__(self, config: FrameVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = FrameVAEConfig() if config is None else config
        width, wide, pixels = config.width, 2 * config.width, 3 * PATCH**2
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(PATCH),
            nn.Conv2d(pixels, width, 3, padding=1),
            *(ResidualBlock(width) for _ in range(config.res_blocks)),
            nn.Conv2d(width, wide, 3, stride=2, padding=1),
            *(ResidualBlock(wide) for _ in range(config.res_blocks)),
            *_norm_silu_conv(wide, config.channels),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(config.channels, wide, 3, padding=1),
            *(ResidualBlock(wide) for _ in range(config.res_blocks)),
            nn.Upsample(scale_factor=SCALE // PATCH, mode="nearest"),
            nn.Conv2d(wide, width, 3, padding=1),
            *(ResidualBlock(width) for _ in range(config.res_blocks)),
            *_norm_silu_conv(width, pixels),
            nn.PixelShuffle(PATCH),
        )
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(config.channels))
        self.register_buffer("variance", torch.ones(config.channels))

    def latents(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> [N, channels, H/8, W/8]. In training mode by the mean and variance of the
        batch, which move the kept ones. TensorError: sizes that 8 does not divide."""
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] % SCALE or images.shape[3] % SCALE:
            raise TensorError(
                f"images: got {list(images.shape)}, expected [N, 3, H, W] in multiples of {SCALE}."
            )
        x = self.encoder(2 * images - 1)
        return F.batch_norm(x, self.mean, self.variance, training=self.training, momentum=MOMENTUM)

    def images(self, latents: Tensor) -> Tensor:
        """[N, channels, h, w] -> [N, 3, 8 h, 8 w], about [0, 1], not clamped."""
        if latents.dim() != 4 or latents.shape[1] != self.config.channels:
            raise TensorError(
                f"latents: got {list(latents.shape)}, expected [N, {self.config.channels}, h, w]."
            )
        pixels: Tensor = self.decoder(latents)
        return (pixels + 1) / 2


class FrameVAECodec:
    """A `FrameVAE` as the engine takes it: pictures uint8 [T, H, W, 3], latents [T, channels, h, w]."""

    frames_per_latent = 1

    def __init__(self, vae: FrameVAE, spec: ModelSpec) -> None:
        """ConfigError: a transformer of other latents."""
        channels, size = spec.frame_shape()[0], (vae.config.image_size // SCALE,) * 2
        if len(spec.frame_shape()) != 3 or channels != vae.config.channels:
            raise ConfigError(
                f"transformer and autoencoder do not fit: latent frames are {list(spec.frame_shape())} and "
                f"{[vae.config.channels, *size]}."
            )
        self._vae = vae

    @property
    def image_size(self) -> int:
        return self._vae.config.image_size

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        return self._vae.latents(to_images(pixels, self.image_size).to(self._vae.mean)).float()

    def decoder(self, given: Tensor | None = None) -> FrameVAEDecoder:
        return FrameVAEDecoder(self._vae)

    def history(self, frame: int) -> int:
        return frame

    def bytes_per_stream(self, size: Size = None) -> int:
        return 0


@dataclass(frozen=True, slots=True, eq=False)
class FrameVAEDecoder:
    """Every frame alone."""

    vae: FrameVAE

    @ordinary_mode()
    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """[n, channels, h, w] -> uint8 [n, 8 h, 8 w, 3] on the CPU."""
        read_here(latents)
        return to_uint8(self.vae.images(latents.to(self.vae.mean)))

    def copy(self, device: torch.device | str | None = None) -> FrameVAEDecoder:
        return self

    def close(self) -> None:
        return


def _norm_silu_conv(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    return (
        nn.GroupNorm(GROUPS, channels_in),
        nn.SiLU(),
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
    )


register(Kind("frame_vae", FrameVAEConfig, FrameVAE, codec=FrameVAECodec))
