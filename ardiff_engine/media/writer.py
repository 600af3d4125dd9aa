# SPDX-License-Identifier: Apache-2.0
"""Frames to disk while they are being made: a folder of png, or an mp4 that plays while it grows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol

from PIL import Image

from ardiff_engine.errors import ArdiffError
from ardiff_engine.media.export import check_target, kind_of, png_name
from ardiff_engine.media.frames import as_frames, enlarge
from ardiff_engine.media.mp4 import Mp4Encoder
from ardiff_engine.media.pixels import Pixels
from ardiff_engine.media.staging import make_parents, staged, unwritable


class _Sink(Protocol):
    def write(self, frame: Pixels) -> None: ...

    def close(self) -> None: ...


class FrameWriter:
    """Appends frames to a growing video; a context manager. `count` is the number of frames written."""

    def __init__(self, path: Path, open_sink: Callable[[], _Sink], scale: int) -> None:
        self.path = path
        self.count = 0
        self._open_sink = open_sink
        self._sink: _Sink | None = None
        self._scale = scale

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, frame: object) -> None:
        """Appends one frame, [H, W, 3] or a PIL image. Raises MediaError if it does not fit or the disk
        refuses."""
        pixels = enlarge(as_frames([frame]), self._scale)[0]
        with _disk(self.path):
            if self._sink is None:
                self._sink = self._open_sink()
            self._sink.write(pixels)
        self.count += 1

    def close(self) -> None:
        """Completes the video. Without any frame, what was at the path before is untouched."""
        if self._sink is not None:
            with _disk(self.path):
                self._sink.close()


def open_writer(path: str | os.PathLike[str], fps: float = 8.0, *, scale: int = 1) -> FrameWriter:
    """A writer for `path`: `.mp4` (fragmented, plays while it grows) or a folder of png (each complete or
    absent).

    Unlike `export_video`, an existing video at `path` is replaced as soon as the first frame comes.

    Raises:
        MediaError: a format that cannot grow (.webp, .gif), an unknown suffix, PyAV missing, a disk that
            refuses.
    """
    target = check_target(path, fps, scale=scale, growing=True)
    is_file = kind_of(target) != ""
    make_parents(target)

    def open_sink() -> _Sink:
        return Mp4Encoder(target, fps, growing=True) if is_file else _PngFolder(target)

    return FrameWriter(target, open_sink, scale)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except ArdiffError:
        raise
    except OSError as error:
        raise unwritable(path, error) from error


class _PngFolder:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._count = 0

    def write(self, frame: Pixels) -> None:
        name = png_name(self._count)
        with staged(self._folder / name) as temporary:
            Image.fromarray(frame).save(temporary, "PNG")
        if self._count == 0:
            for old in self._folder.glob("frame_*.png"):
                if old.name != name:
                    old.unlink()
        self._count += 1

    def close(self) -> None:
        """Nothing is held back: every frame is on the disk once `write` returns."""
