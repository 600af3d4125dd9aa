# SPDX-License-Identifier: Apache-2.0
"""Pictures: the one place of this package that opens them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ardiff_engine.media.limits import check_picture
from ardiff_engine.media.pixels import Pixels
from ardiff_engine.media.source import decoding, head_of, size_of, undecodable
from ardiff_engine.media.upright import upright

ORIENTATION = 0x0112
# Each scan of a progressive JPEG is a pass over the whole picture and costs 33 bytes. Writers make about ten.
MAX_SCANS = 100


def picture_kind(head: bytes) -> str | None:
    """PNG, JPEG, GIF or WEBP by a file's first bytes; None for anything else. Names and suffixes do not
    count."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return None


@contextlib.contextmanager
def open_picture(path: Path, file: BinaryIO) -> Iterator[Image.Image]:
    """The picture in an open file, not yet decoded.

    Pillow knows dozens of formats, some of which start programs. It is told which one to expect.

    Raises:
        MediaError: none of the kinds above, damaged, or more work than the file may ask for.
    """
    kind = picture_kind(head_of(path, file))
    if kind is None:
        raise undecodable(path, "no PNG, JPEG, GIF or WebP")
    if kind == "JPEG" and _scans(path, file) > MAX_SCANS:
        raise undecodable(path, f"a JPEG of more than {MAX_SCANS} scans")
    with decoding(path):
        image = Image.open(file, formats=(kind,))
    with image:
        check_picture(path, image.width, image.height, size_of(file))
        yield image


def _scans(path: Path, file: BinaryIO) -> int:
    count, end = 0, b""
    with decoding(path):
        file.seek(0)
        while piece := file.read(1 << 20):
            count += (end + piece).count(b"\xff\xda")
            end = piece[-1:]
        file.seek(0)
    return count


def pixels_of(image: Image.Image) -> Pixels:
    """The picture, upright, as uint8 [H, W, 3]. 16 bits become the nearest of 8; transparency is left out.

    Raises what Pillow raises, so call it within `decoding`.
    """
    if image.mode.startswith("I"):  # 16 bits of grey, for which `convert` knows only black and white
        grey = np.rint(np.asarray(image).astype(np.float64) * (255 / 65535)).clip(0, 255).astype(np.uint8)
        pixels = np.repeat(grey[..., None], 3, axis=-1)
    else:
        pixels = np.asarray(image.convert("RGB"))
    return np.ascontiguousarray(upright(pixels, image.getexif().get(ORIENTATION, 1)))
