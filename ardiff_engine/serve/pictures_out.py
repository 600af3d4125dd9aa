# SPDX-License-Identifier: Apache-2.0
"""Pictures of a live stream as bytes: fragments of one growing mp4, or single images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ardiff_engine.media.frames import as_frames, enlarge
from ardiff_engine.media.mp4 import Mp4Encoder

CODEC = 'video/mp4; codecs="avc1.64001f"'
OPTIONS = {"webp": {"lossless": True, "method": 0}, "jpeg": {"quality": 92}, "png": {"compress_level": 1}}


class PicturesOut:
    """Of one stream. Pictures uint8 [H, W, 3] -> messages, in order."""

    def __init__(self, kind: str, fps: float, scale: int, path: Path | None = None) -> None:
        """kind: mp4, webp, jpeg or png. scale: each pixel becomes a square of this side. path: of an mp4 that
        is written to disk; no message has bytes then."""
        self._kind, self._scale = kind, scale
        self._file = io.BytesIO()
        self._encoder = None
        if path is not None:
            self._encoder = Mp4Encoder(path, fps)
        elif kind == "mp4":
            self._encoder = Mp4Encoder(Path("stream.mp4"), fps, growing=True, file=self._file)

    def messages(self, pictures: Sequence[np.ndarray]) -> list[tuple[int, bytes]]:
        """(pictures, bytes): one fragment with all of them, or an image of each."""
        if not pictures:
            return []
        frames = enlarge(as_frames(list(pictures)), self._scale)
        if self._encoder is None:
            return [(1, self._image(frame)) for frame in frames]
        for frame in frames:
            self._encoder.write(frame)
        return [(len(frames), self._taken())]

    def rest(self) -> bytes:
        """What the end of an mp4 still brings."""
        if self._encoder is None:
            return b""
        self._encoder.close()
        self._encoder = None
        return self._taken()

    def _taken(self) -> bytes:
        data = self._file.getvalue()
        self._file.seek(0)
        self._file.truncate()
        return data

    def _image(self, frame: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, self._kind.upper(), **OPTIONS[self._kind])
        return file.getvalue()
