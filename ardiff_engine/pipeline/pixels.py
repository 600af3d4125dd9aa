# SPDX-License-Identifier: Apache-2.0
"""Between the pictures of a video and the latents that a transformer makes: sizes, counts, and both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ardiff_engine.ambient import ordinary_mode
from ardiff_engine.arguments import integer
from ardiff_engine.codec import TAEHV, Tiled, WanVAE
from ardiff_engine.codec.protocol import Decoder
from ardiff_engine.errors import ConfigError, PlanError
from ardiff_engine.host_copy import read_here
from ardiff_engine.models.pictures import to_uint8
from ardiff_engine.systems import System

Size = tuple[int, int]
VideoVAE = WanVAE | TAEHV
FRAMES = 4
"""Pictures of every latent but the first, which is one."""
MOST_FRAMES = 10**6
SEARCHED = 64


def latents_of(frames: int) -> int:
    """Latents of 1 + 4k pictures."""
    return 1 + (frames - 1) // FRAMES


def frames_of(latents: int) -> int:
    """Pictures of the first latents of a video."""
    return 1 + FRAMES * (latents - 1) if latents else 0


def first_latent(frame: int) -> int:
    """The first latent whose pictures begin at this one or later."""
    return 0 if frame < 1 else 1 - (1 - frame) // FRAMES


def checked_size(size: object, multiple: Size) -> Size:
    """Height and width of a video. ConfigError, with the nearest size, where they are no multiples."""
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        raise ConfigError(f"size: got {size!r:.60}, expected height and width such as (480, 832).")
    height, width = integer("height", size[0]), integer("width", size[1])
    if height < 1 or width < 1 or height % multiple[0] or width % multiple[1]:
        near = [max(1, round(own / step)) * step for own, step in zip((height, width), multiple, strict=True)]
        steps = f"{multiple[0]}" if multiple[0] == multiple[1] else f"{multiple[0]} and {multiple[1]}"
        raise ConfigError(
            f"size: got {height} x {width}, expected multiples of {steps}; the nearest is "
            f"{near[0]} x {near[1]}."
        )
    return height, width


def checked_latents(num_frames: object, system: System) -> int:
    """Latents of a video of that many pictures, given ones included.

    ConfigError, with the nearest numbers: not 1 + 4k, or not whole blocks of the system.
    """
    frames = integer("num_frames", num_frames, low=1, high=MOST_FRAMES)

    def why_not(frames: int) -> str | None:
        if frames % FRAMES != 1:
            return "a video has 1 + 4k frames"
        if latents_of(frames) <= system.given_frames:
            return f"{frames_of(system.given_frames)} of them are given"
        try:
            system.plan_of(latents_of(frames))
        except PlanError as error:
            return str(error)
        return None

    wrong = why_not(frames)
    if wrong is None:
        return latents_of(frames)
    first = FRAMES * ((frames - 1) // FRAMES) + 1
    below = next((n for n in range(first, max(0, first - SEARCHED), -FRAMES) if not why_not(n)), None)
    above = next((n for n in range(first + FRAMES, first + SEARCHED, FRAMES) if not why_not(n)), None)
    would = " or ".join(str(n) for n in (above, below) if n is not None)
    raise ConfigError(f"num_frames: got {frames}; {wrong}. {would or 'Another number'} would do.")


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """A video autoencoder as a pipeline uses it: pictures uint8 [T, H, W, 3] on the CPU. tile: see
    `in_tiles`."""

    vae: VideoVAE
    tile: Size | None = None

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[1 + 4k, H, W, 3] -> clean latents, float32 [1 + k, C, h, w]."""
        return self._encoded(self._scaled(pixels.permute(3, 0, 1, 2)[None].to(_weight(self.vae))))

    @torch.no_grad()
    def beside(self, first: torch.Tensor, latents: int) -> torch.Tensor:
        """What image-to-video models take beside the latents, float32 [latents, 4 + C, h, w]: a mask of the
        pictures that are given, and the latents of the first one [1, H, W, 3] followed by grey."""
        scale, (height, width) = self.vae.scale, first.shape[1:3]
        clip = torch.full((1, 3, frames_of(latents), height, width), (1 + self.vae.black) / 2)
        clip[0, :, 0] = self._scaled(first[0].permute(2, 0, 1).float())
        z = self._encoded(clip.to(_weight(self.vae)))
        mask = z.new_zeros(latents, FRAMES, height // scale, width // scale)
        mask[0] = 1
        return torch.cat([mask, z], dim=1)

    def decoder(self, given: torch.Tensor | None = None) -> PixelDecoder:
        return PixelDecoder(self.vae, in_tiles(self.vae, self.tile).decoder(given))

    def _scaled(self, pixels: torch.Tensor) -> torch.Tensor:
        """0 to 255 -> black to 1."""
        return pixels / (255 / (1 - self.vae.black)) + self.vae.black

    def _encoded(self, clip: torch.Tensor) -> torch.Tensor:
        """[1, 3, 1 + 4k, H, W] -> [1 + k, C, h, w]. Where a video begins with a whole latent, the first
        picture fills it."""
        filled = clip[:, :, :1].expand(-1, -1, self.vae.first_frames - 1, -1, -1)
        return self.vae.encode(torch.cat([filled, clip], dim=2))[0].transpose(0, 1).float()


@dataclass(frozen=True, slots=True, eq=False)
class PixelDecoder:
    vae: VideoVAE
    decoder: Decoder

    @ordinary_mode()
    @torch.no_grad()
    def push(self, latents: torch.Tensor) -> torch.Tensor:
        """The next latents [n, C, h, w] -> the pictures that they complete, uint8 [m, H, W, 3]."""
        read_here(latents)
        z, black = latents.to(_weight(self.vae).device), self.vae.black
        # One at a time, so that there is one picture's worth of float32 beside the bytes.
        return torch.cat(
            [to_uint8((self.decoder.push(latent) - black) / (1 - black)) for latent in z.split(1)]
        )

    def close(self) -> None:
        self.decoder.close()


def in_tiles(vae: VideoVAE, tile: Size | None) -> VideoVAE | Tiled:
    """What decodes frames part by part, of `tile` rows and columns of latents; None: whole ones.
    ConfigError: tiles that are too small."""
    return vae if tile is None else Tiled(vae, tile)


def _weight(vae: VideoVAE) -> torch.Tensor:
    return next(vae.parameters())
