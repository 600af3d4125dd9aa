# SPDX-License-Identifier: Apache-2.0
"""Between the pictures of a video and the latents that a transformer makes: sizes, counts, and both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ardiff_engine.ambient import ordinary_mode
from ardiff_engine.arguments import integer
from ardiff_engine.codec import TAEHV, Tiled, WanVAE
from ardiff_engine.codec.past import WatchedPast
from ardiff_engine.codec.protocol import Decoder
from ardiff_engine.codec.video import VideoEncoder
from ardiff_engine.errors import ArdiffError, ConfigError
from ardiff_engine.host_copy import read_here
from ardiff_engine.models.pictures import to_uint8
from ardiff_engine.models.spec import ModelSpec
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


def checked_latents(num_frames: object, system: System, spec: ModelSpec) -> int:
    """Latents of a video of that many pictures, given ones included.

    ConfigError, with the nearest numbers: not 1 + 4k, not whole blocks of the system, more than its memory
    sees.
    """
    frames = integer("num_frames", num_frames, low=1, high=MOST_FRAMES)

    def why_not(frames: int) -> str | None:
        if frames % FRAMES != 1:
            return "a video has 1 + 4k frames"
        if latents_of(frames) <= system.given_frames:
            return f"{frames_of(system.given_frames)} of them are given"
        try:
            system.memory.check(system.plan_of(latents_of(frames)), spec)
        except ArdiffError as error:
            return f"of its {latents_of(frames)} latents: {error}"
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

    def beside(self, first: torch.Tensor) -> Beside:
        """What image-to-video models take for a first picture [H, W, 3]."""
        return Beside(self.vae, self._scaled(first.permute(2, 0, 1).float()))

    def decoder(self, given: torch.Tensor | None = None) -> PixelDecoder:
        return PixelDecoder(self.vae, in_tiles(self.vae, self.tile).decoder(given))

    def memory(self, size: Size) -> tuple[int, int]:
        """Bytes that the decoder of one video keeps, with so many rows and columns of latents, and what is
        taken, at most, while a latent is decoded: `feature_maps` of the codec, with oneDNN's copies on a CPU.

        The heap of the C library does not give back pieces below 32 MiB at once. So small frames, whose maps
        are such pieces, were seen to take up to five maps more."""
        shown = size if self.tile is None else (min(size[0], self.tile[0]), min(size[1], self.tile[1]))
        pixels = shown[0] * shown[1] * self.vae.scale**2
        map_bytes = FRAMES * pixels * self.vae.decoder_width // self.vae.patch**2 * torch.float32.itemsize
        return in_tiles(self.vae, self.tile).bytes_per_stream(size), round(self.vae.feature_maps * map_bytes)

    def _scaled(self, pixels: torch.Tensor) -> torch.Tensor:
        """0 to 255 -> black to 1."""
        return pixels / (255 / (1 - self.vae.black)) + self.vae.black

    def _encoded(self, clip: torch.Tensor) -> torch.Tensor:
        """[1, 3, 1 + 4k, H, W] -> [1 + k, C, h, w]. Where a video begins with a whole latent, the first
        picture fills it."""
        filled = clip[:, :, :1].expand(-1, -1, self.vae.first_frames - 1, -1, -1)
        return self.vae.encode(torch.cat([filled, clip], dim=2))[0].transpose(0, 1).float()


class Beside:
    """What image-to-video models take beside the latents, frame by frame: a mask of the pictures that are
    given, and the latents of the first one followed by grey.

    Encoded as far as it was asked for. The autoencoder looks back over a bounded time: once a piece of grey
    leaves all that it remembers as it was, all later latents are the same. So endless videos need no more.
    """

    def __init__(self, vae: VideoVAE, picture: torch.Tensor) -> None:
        """picture: [3, H, W] in the autoencoder's range."""
        self._past = WatchedPast()
        self._encoder = VideoEncoder(vae, self._past)
        self._next = picture.to(_weight(vae)).expand(vae.first_frames, -1, -1, -1)
        self._grey = torch.full_like(self._next[:1], (1 + vae.black) / 2).expand(FRAMES, -1, -1, -1)
        self._rows: list[torch.Tensor] = []
        self._settled = False

    def __call__(self, frame: int) -> torch.Tensor:
        """float32 [4 + C, h, w] of a latent frame."""
        while len(self._rows) <= frame and not self._settled:
            self._past.changed = False
            z = self._encoder.push(self._next)[0].float()
            mask = z.new_full((FRAMES, *z.shape[1:]), float(not self._rows))
            self._rows.append(torch.cat([mask, z]))
            self._next, self._settled = self._grey, not self._past.changed
        return self._rows[min(frame, len(self._rows) - 1)]


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
