# SPDX-License-Identifier: Apache-2.0
"""One video through a causal autoencoder, in pieces of any length.

Work goes latent by latent, whatever the pieces are. So every split gives the same bits, and memory is bounded
by the state and the work of one latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ardiff_engine.codec.past import Past
from ardiff_engine.codec.protocol import Size
from ardiff_engine.errors import ConfigError, StreamClosedError, TensorError

FRAMES_PER_LATENT = 4


class CausalAutoencoder(Protocol):
    """Four frames to a latent, but for the first latent of a video.

    channels: of a latent. scale: pixels to a latent, each way. first_frames: that the first latent encodes.
    """

    channels: int
    scale: int
    first_frames: int

    def encode_piece(self, pixels: Tensor, past: Past) -> Tensor:
        """The frames of one latent [B, 3, t, H, W] -> [B, C, 1, h, w]."""

    def decode_latent(self, latent: Tensor, past: Past) -> Tensor:
        """[B, C, 1, h, w] -> its frames [B, 3, t, H, W], fewer of the first latent."""


class VideoDecoder:
    """Decodes one video, latent by latent, and keeps what the next one needs of those before."""

    def __init__(self, codec: CausalAutoencoder, given: Tensor | None = None) -> None:
        """given: latents [P, C, h, w] before the first one to decode; their frames are not made again."""
        self._codec = codec
        self._past: Past | None = Past()
        self._shape: tuple[int, ...] | None = None
        for latent in () if given is None else given.split(1):
            self.push(latent)

    def push(self, latents: Tensor) -> Tensor:
        """The next n latents [n, C, h, w] -> frames [m, 3, H, W], not clamped.

        m = 4n, but 1 + 4 (n - 1) at the start of the video. TensorError: another shape, or another size than
        before. StreamClosedError: after `close()`.
        """
        if latents.dim() != 4:
            raise TensorError(f"latents: got {list(latents.shape)}; expected [n, channels, h, w].")
        return self.next(latents.transpose(0, 1)[None])[0].transpose(0, 1)

    @torch.no_grad()
    def next(self, latents: Tensor) -> Tensor:
        """As `push`, for a batch of videos of one length: [B, C, n, h, w] -> [B, 3, m, H, W]."""
        past = self._open()
        self._check(latents)
        frames, made = None, 0
        for number, latent in enumerate(latents.split(1, dim=2), 1):
            piece = self._codec.decode_latent(latent, past)
            if frames is None:
                # Written where they belong: all pieces beside the whole would take twice the memory.
                count = piece.shape[2] + FRAMES_PER_LATENT * (latents.shape[2] - number)
                frames = piece.new_empty(*piece.shape[:2], count, *piece.shape[3:])
            frames[:, :, made : made + piece.shape[2]] = piece
            made += piece.shape[2]
        assert frames is not None
        return frames

    def copy(self, device: torch.device | str | None = None) -> VideoDecoder:
        """A second decoder that goes on from here, its state on `device`. On the same one both share it until
        either goes on."""
        other = VideoDecoder(self._codec)
        other._past, other._shape = self._open().copy(device), self._shape
        return other

    def close(self) -> None:
        """Free the state."""
        self._past = None

    @property
    def nbytes(self) -> int:
        """Of the state now."""
        return 0 if self._past is None else self._past.nbytes

    def _open(self) -> Past:
        if self._past is None:
            raise StreamClosedError("This decoder was closed: make a new one for the next video.")
        return self._past

    def _check(self, latents: Tensor) -> None:
        channels = self._codec.channels
        if latents.dim() != 5 or latents.shape[1] != channels or not latents.numel():
            raise TensorError(
                f"latents: got {list(latents.shape)}; expected [B, {channels}, at least 1, h, w]."
            )
        shape = (latents.shape[0], *latents.shape[3:])
        if self._shape is not None and shape != self._shape:
            raise TensorError(
                f"latents: got (batch, h, w) {shape} after {self._shape}; a video keeps its size. Make a new "
                "decoder for another one."
            )
        self._shape = shape


class VideoEncoder:
    """Encodes one video whose frames come in pieces."""

    def __init__(self, codec: CausalAutoencoder, past: Past | None = None) -> None:
        self._codec = codec
        self._past = Past() if past is None else past
        self._waiting: Tensor | None = None
        self._shape: tuple[int, ...] | None = None
        self._needed = codec.first_frames

    def push(self, pixels: Tensor) -> Tensor:
        """The next frames [n, 3, H, W] -> the latents that they complete [m, C, h, w], m >= 0."""
        if pixels.dim() != 4:
            raise TensorError(f"pixels: got {list(pixels.shape)}; expected [n, 3, H, W].")
        return self.next(pixels.transpose(0, 1)[None])[0].transpose(0, 1)

    @torch.no_grad()
    def next(self, pixels: Tensor) -> Tensor:
        """As `push`, for a batch of videos of one length: [B, 3, n, H, W] -> [B, C, m, h, w]."""
        self._check(pixels)
        if self._waiting is not None:
            pixels = torch.cat([self._waiting, pixels], dim=2)
        scale, used = self._codec.scale, 0
        latents = []
        while used + self._needed <= pixels.shape[2]:
            piece = pixels[:, :, used : used + self._needed]
            latents.append(self._codec.encode_piece(piece, self._past))
            used, self._needed = used + self._needed, FRAMES_PER_LATENT
        # A copy: a view would keep all of them alive.
        self._waiting = pixels[:, :, used:].clone()
        if latents:
            return torch.cat(latents, dim=2)
        shape = (pixels.shape[0], self._codec.channels, 0, pixels.shape[3] // scale, pixels.shape[4] // scale)
        return pixels.new_empty(shape)

    @property
    def waiting(self) -> int:
        """Frames that belong to a latent whose other frames have not come."""
        return 0 if self._waiting is None else self._waiting.shape[2]

    def _check(self, pixels: Tensor) -> None:
        scale = self._codec.scale
        good = pixels.dim() == 5 and pixels.shape[1] == 3 and pixels.numel() and pixels.is_floating_point()
        if not good or pixels.shape[3] % scale or pixels.shape[4] % scale:
            raise TensorError(
                f"pixels: got {pixels.dtype} {list(pixels.shape)}; expected floating [B, 3, T, H, W] "
                f"where {scale} divides H and W."
            )
        shape = (pixels.shape[0], *pixels.shape[3:])
        if self._shape is not None and shape != self._shape:
            raise TensorError(
                f"pixels: got (batch, H, W) {shape} after {self._shape}; a video keeps its size. Make a new "
                "encoder for another one."
            )
        self._shape = shape


def encode_whole(codec: CausalAutoencoder, pixels: Tensor) -> Tensor:
    """A batch of whole videos [B, 3, T, H, W] -> [B, C, F, h, w]. TensorError: frames that fill no latent."""
    first = codec.first_frames
    frames = pixels.shape[2] if pixels.dim() == 5 else 0
    if frames % FRAMES_PER_LATENT != first % FRAMES_PER_LATENT:
        likely = f"{first} + 4k" if first != FRAMES_PER_LATENT else "4k"
        raise TensorError(f"pixels: got {list(pixels.shape)}; expected [B, 3, {likely}, H, W].")
    return VideoEncoder(codec).next(pixels)


def latent_size(size: Size) -> tuple[int, int]:
    """ConfigError: not two whole numbers >= 1."""
    if isinstance(size, Sequence) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size):
        return size[0], size[1]
    raise ConfigError(f"size is {size!r}; expected height and width of a latent frame, such as (60, 104).")
