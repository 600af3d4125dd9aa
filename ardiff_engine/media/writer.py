# SPDX-License-Identifier: Apache-2.0
"""Frames to disk while they are being made: a folder of png, or an mp4 that plays while it grows."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Protocol

from PIL import Image

from ardiff_engine.errors import ArdiffError
from ardiff_engine.media.export import check_target, kind_of, png_name
from ardiff_engine.media.frames import Pixels, as_frames, enlarge
from ardiff_engine.media.mp4 import Mp4Encoder
from ardiff_engine.media.staging import make_parents, staged, unwritable


class _Sink(Protocol):
    def write(self, frame: Pixels) -> None: ...

    def close(self) -> None: ...


class FrameWriter:
    """Appends frames to a growing video; a context manager. `count` is the number of frames written."""

    def __init__(self, path: Path, sink: _Sink, scale: int) -> None:
        self.path = path
        self.count = 0
        self._sink = sink
        self._scale = scale

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, frame: object) -> None:
        """Appends one frame [H, W, 3]. Raises MediaError if it does not fit or the disk refuses."""
        pixels = enlarge(as_frames(frame[None]), self._scale)[0]  # type: ignore[index]
        try:
            self._sink.write(pixels)
        except OSError as error:
            if isinstance(error, ArdiffError):
                raise
            raise unwritable(self.path, error) from error
        self.count += 1

    def close(self) -> None:
        self._sink.close()


def open_writer(path: str | os.PathLike[str], fps: float = 8.0, *, scale: int = 1) -> FrameWriter:
    """A writer for `path`: `.mp4` (fragmented, plays while it grows) or a folder of png (each complete or
    absent).

    Unlike `export_video`, an existing video at `path` is replaced as soon as the first frame comes.

    Raises:
        MediaError: a format that cannot grow (.webp, .gif), an unknown suffix, PyAV missing, a disk that
            refuses.
    """
    target = check_target(path, fps, growing=True)
    kind = kind_of(target)
    make_parents(target)
    try:
        sink: _Sink = Mp4Encoder(target, fps, growing=True) if kind else _PngFolder(target)
    except OSError as error:
        if isinstance(error, ArdiffError):
            raise
        raise unwritable(target, error) from error
    return FrameWriter(target, sink, scale)


class _PngFolder:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for stale in folder.glob("frame_*.png"):
            stale.unlink()
        self._folder = folder
        self._count = 0

    def write(self, frame: Pixels) -> None:
        with staged(self._folder / png_name(self._count)) as temporary:
            Image.fromarray(frame).save(temporary, "PNG")
        self._count += 1

    def close(self) -> None:
        """Nothing is held back: every frame is on the disk once `write` returns."""
