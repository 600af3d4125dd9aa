# SPDX-License-Identifier: Apache-2.0
"""What becomes of one stream's latents: pictures, and these as bytes or in a file."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import torch

from ardiff_engine.codec.protocol import Codec
from ardiff_engine.engine.decoding import StreamDecoder
from ardiff_engine.serve.pictures_out import PicturesOut


@dataclass(frozen=True, slots=True)
class Form:
    """kind: of the bytes, mp4, webp, jpeg or png. scale: pixels become squares of this side. path: of an mp4
    that is written instead."""

    kind: str
    fps: float
    scale: int
    path: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Of one latent frame. first: number of its first picture. messages: (pictures, bytes) of each."""

    first: int
    messages: list[tuple[int, bytes]]


class Film:
    """One stream. Latent frames go in one by one, in order."""

    def __init__(self, codec: Codec, form: Form, decoder: StreamDecoder | None = None) -> None:
        weights = codec.parameters() if isinstance(codec, torch.nn.Module) else iter(())
        self._device = next((weight.device for weight in weights), torch.device("cpu"))
        self._codec, self._form = codec, form
        self._decoder = decoder or StreamDecoder(codec, 0, lambda latents: latents, (), self._device)
        self._out: PicturesOut | None = None

    def push(self, index: int, latent: torch.Tensor, seen: Container[int] | None, shown: bool) -> Piece:
        """seen: frames that the stream can still go back behind; None: all. shown: whether its pictures are
        wanted; those of a frame that a fork shares with the stream before it are not."""
        (pictures,) = self._decoder.decode([(index, latent.to(self._device))], seen)
        first = pictures[0].index if pictures else 0
        if not shown:
            return Piece(first, [])
        if self._out is None:  # not before: a film may wait long for its first frame, or never have one
            form = self._form
            self._out = PicturesOut(form.kind, form.fps, form.scale, form.path)
        return Piece(first, self._out.messages([picture.image.numpy() for picture in pictures]))

    def rollback(self, frame: int) -> None:
        """`frame` and all later ones come again."""
        self._decoder.rollback(frame)

    def fork(self) -> Film:
        return Film(self._codec, self._form, self._decoder.fork())

    def close(self) -> bytes:
        """The rest of the bytes; a file is whole then."""
        self._decoder.close()
        return b"" if self._out is None else self._out.rest()
