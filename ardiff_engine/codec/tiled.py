# SPDX-License-Identifier: Apache-2.0
"""Large frames in tiles: another codec sees one part of a frame at a time, and neighbours are blended.

That bounds the work of a decoder by that of one tile; the state that it keeps grows by what overlaps. A tile
knows nothing of what lies outside of it. So pictures are exact where the codec's own sight ends within the
overlap (TAEHV sees 18 latents far: an overlap of 36 + blend). Wan's autoencoder has an attention over whole
frames, so its tiles differ from the whole by what that brings from afar.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from ardiff_engine.codec.protocol import Codec, Decoder, Size
from ardiff_engine.codec.video import latent_size
from ardiff_engine.errors import ConfigError, TensorError


class LocalDecoder(Decoder, Protocol):
    def copy(self, device: torch.device | str | None = None) -> LocalDecoder: ...

    @property
    def nbytes(self) -> int: ...


class LocalCodec(Codec, Protocol):
    """A codec whose latents are pictures [C, h, w]. scale: pixels to a latent, each way."""

    scale: int
    channels: int
    black: float
    frames_per_latent: int

    def history(self, frame: int) -> int: ...

    def decoder(self, given: Tensor | None = None) -> LocalDecoder: ...


@dataclass(frozen=True, slots=True)
class Axis:
    """Tiles along one axis. starts: of each, all of length `tile`. weights: [tiles, pixels], of sum 1."""

    starts: tuple[int, ...]
    tile: int
    weights: Tensor

    @classmethod
    def of(cls, length: int, tile: int, overlap: int, blend: int, scale: int) -> Axis:
        """Evenly spread, with at least `overlap` latents in common, in the middle of which `blend` lead from
        one tile to the next. scale: pixels to a latent."""
        tile = min(tile, length)
        count = 1 if tile == length else -(-(length - overlap) // (tile - overlap))
        starts = tuple(round(i * (length - tile) / max(1, count - 1)) for i in range(count))
        place = (torch.arange(length * scale) + 0.5) / scale
        reached = [torch.ones(length * scale)]
        for before, start in zip(starts, starts[1:], strict=False):
            middle = (before + tile + start) / 2
            if blend:
                reached.append(((place - middle) / blend + 0.5).clamp(0, 1))
            else:
                reached.append((place >= middle).float())
        after = [*reached[1:], torch.zeros(length * scale)]
        return cls(starts, tile, torch.stack(reached) - torch.stack(after))


class Tiled:
    """A codec of frames of any size, by one of small frames.

    tile: rows and columns of latents that are decoded together. overlap: latents that neighbours have in
    common. blend: those of them, in the middle, over which one goes over into the other; 0 is a cut.
    ConfigError: a tile that is no larger than the overlap, or an overlap smaller than the blend.
    """

    def __init__(
        self, codec: LocalCodec, tile: tuple[int, int] = (32, 32), overlap: int = 8, blend: int = 4
    ) -> None:
        if min(latent_size(tile)) <= overlap or not 0 <= blend <= overlap:
            raise ConfigError(
                f"tiles of {tile} latents, an overlap of {overlap} and a blend of {blend}; expected tiles "
                "larger than the overlap, and that at least as large as the blend, which is >= 0."
            )
        self.codec = codec
        self.tile, self.overlap, self.blend = tile, overlap, blend
        self.channels, self.scale = codec.channels, codec.scale
        self.black, self.frames_per_latent = codec.black, codec.frames_per_latent

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, T, H, W] -> latents [B, channels, F, h, w], tile by tile."""
        scale = self.scale
        if pixels.dim() != 5 or pixels.shape[3] % scale or pixels.shape[4] % scale:
            raise TensorError(
                f"pixels: got {list(pixels.shape)}; expected [B, 3, T, H, W] where {scale} divides H and W."
            )
        height, width = pixels.shape[3] // scale, pixels.shape[4] // scale
        tiles = Tiles(self, (height, width), 1)
        return tiles.joined(self.codec.encode(piece) for piece in tiles.cut(pixels, scale))

    def decode(self, latents: Tensor) -> Tensor:
        """[B, channels, F, h, w] -> [B, 3, T, H, W]."""
        videos = [self.decoder().push(video.transpose(0, 1)).transpose(0, 1) for video in latents]
        return torch.stack(videos)

    def decoder(self, given: Tensor | None = None) -> TiledDecoder:
        return TiledDecoder(self, given)

    def history(self, frame: int) -> int:
        return self.codec.history(frame)

    def bytes_per_stream(self, size: Size) -> int:
        """Of all tiles of a frame of this size."""
        height, width = latent_size(size)
        tiles = Tiles(self, (height, width), 1)
        return len(tiles) * self.codec.bytes_per_stream((tiles.rows.tile, tiles.columns.tile))


class Tiles:
    """Of frames of one size. scale: of what is joined, in pixels to a latent."""

    def __init__(self, codec: Tiled, size: tuple[int, int], scale: int) -> None:
        self.rows, self.columns = (
            Axis.of(length, tile, codec.overlap, codec.blend, scale)
            for length, tile in zip(size, codec.tile, strict=True)
        )
        self._scale = scale

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def cut(self, x: Tensor, scale: int = 1) -> Sequence[Tensor]:
        """The part of x [..., H, W] that each tile sees; scale: places of x to a latent."""
        rows, columns = self.rows, self.columns
        return [
            x[..., top * scale : (top + rows.tile) * scale, left * scale : (left + columns.tile) * scale]
            for top, left in product(rows.starts, columns.starts)
        ]

    def joined(self, pieces: Iterable[Tensor]) -> Tensor:
        """[..., tile, tile] of each tile, in that order -> [..., H, W], float32 sums in the dtype of the
        pieces."""
        whole: Tensor | None = None
        dtype = torch.float32
        scale, rows, columns = self._scale, self.rows, self.columns
        places = product(enumerate(rows.starts), enumerate(columns.starts))
        for ((i, top), (j, left)), piece in zip(places, pieces, strict=True):
            if whole is None:
                dtype = piece.dtype
                shape = (*piece.shape[:-2], rows.weights.shape[1], columns.weights.shape[1])
                whole = piece.new_zeros(shape, dtype=torch.float32)
            y = slice(top * scale, (top + rows.tile) * scale)
            x = slice(left * scale, (left + columns.tile) * scale)
            weight = rows.weights[i, y, None] * columns.weights[j, x]
            whole[..., y, x] += piece * weight.to(piece.device)
        assert whole is not None
        return whole.to(dtype)


class TiledDecoder:
    """A decoder for every tile of a video."""

    def __init__(self, codec: Tiled, given: Tensor | None = None) -> None:
        self._codec = codec
        self._given = given
        self._tiles: Tiles | None = None
        self._decoders: list[LocalDecoder] = []
        if given is not None and len(given):
            self._start(given)

    def push(self, latents: Tensor) -> Tensor:
        """The next n latents [n, C, h, w] -> frames [m, 3, H, W]."""
        if latents.dim() != 4:
            raise TensorError(f"latents: got {list(latents.shape)}; expected [n, channels, h, w].")
        tiles = self._tiles or self._start(latents)
        pieces = zip(self._decoders, tiles.cut(latents), strict=True)
        return tiles.joined(decoder.push(piece) for decoder, piece in pieces)

    def copy(self, device: torch.device | str | None = None) -> TiledDecoder:
        other = TiledDecoder(self._codec)
        other._tiles = self._tiles
        other._decoders = [decoder.copy(device) for decoder in self._decoders]
        return other

    def close(self) -> None:
        for decoder in self._decoders:
            decoder.close()

    @property
    def nbytes(self) -> int:
        return sum(decoder.nbytes for decoder in self._decoders)

    def _start(self, latents: Tensor) -> Tiles:
        size = (latents.shape[2], latents.shape[3])
        self._tiles = tiles = Tiles(self._codec, size, self._codec.scale)
        given = [None] * len(tiles) if self._given is None else tiles.cut(self._given)
        self._decoders = [self._codec.codec.decoder(piece) for piece in given]
        self._given = None
        return tiles
