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
        MediaError: none of the kinds above, damaged, or larger than the file may claim.
    """
    kind = picture_kind(head_of(path, file))
    if kind is None:
        raise undecodable(path, "no PNG, JPEG, GIF or WebP")
    with decoding(path):
        image = Image.open(file, formats=(kind,))
    with image:
        check_picture(path, image.width, image.height, size_of(file))
        yield image


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
