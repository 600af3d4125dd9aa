# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures as a video."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ardiff_engine.media.picture import open_picture, pixels_of
from ardiff_engine.media.pixels import Pixels
from ardiff_engine.media.source import decoding, opened, undecodable
from ardiff_engine.media.video import Video

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class PictureFolder(Video):
    """The pictures of a folder, in the order of the numbers in their names. Nothing says how fast."""

    files: tuple[Path, ...]

    def play(self, first: int = 0) -> Iterator[Pixels]:
        for file in self.files[first:]:
            pixels = _read(file)
            if pixels.shape[:2] != (self.height, self.width):
                raise undecodable(
                    file, f"size {pixels.shape[:2]} where the first picture has {(self.height, self.width)}"
                )
            yield pixels


def open_folder(folder: Path) -> PictureFolder:
    """Raises MediaError for a folder that cannot be listed or has no pictures, or whose first is damaged."""
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise undecodable(folder, error.strerror or repr(error)) from error
    files = [entry for entry in entries if entry.suffix.lower() in SUFFIXES and entry.name[0] != "."]
    if not files:
        raise undecodable(folder, "a folder without .png or .jpg files")
    files.sort(key=_natural)
    height, width = _read(files[0]).shape[:2]
    try:
        size = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise undecodable(folder, error.strerror or repr(error)) from error
    return PictureFolder(folder, len(files), height, width, None, size, tuple(files))


def _read(path: Path) -> Pixels:
    with opened(path) as file, open_picture(path, file) as image, decoding(path):
        return pixels_of(image)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    # frame_2 before frame_10: runs of digits compare as numbers.
    parts = re.findall(r"\d+|\D+", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
