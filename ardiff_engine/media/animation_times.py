# SPDX-License-Identifier: Apache-2.0
"""How long each picture of a GIF, WebP or PNG animation stands, read from the file's blocks.

Nothing is decoded here: a few bytes can claim hours, and pictures that take long to make. A file that ends in
the middle, or before its end mark, is damaged; decoders show such a file as if it were a shorter one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO


class DamagedAnimation(Exception):
    """What is wrong with a file whose name is not known here."""


def picture_times(kind: str, file: BinaryIO) -> list[tuple[int, Fraction]]:
    """(index of the picture, seconds it stands) for every picture that is shown. A still picture stands 0 s.

    Raises:
        DamagedAnimation: the file ends too early, or a picture is larger than the animation.
    """
    file.seek(0)
    read = {"GIF": _gif, "WEBP": _webp, "PNG": _png}.get(kind)
    times = [] if read is None else list(read(file))
    return times or [(0, Fraction(0))]


def _gif(file: BinaryIO) -> Iterator[tuple[int, Fraction]]:
    header = _exactly(file, 13)
    _skip_colours(file, header[10])
    width, height = struct.unpack_from("<HH", header, 6)
    hundredths, index = 0, 0
    while (mark := _exactly(file, 1)) != b";":
        if mark == b"!":
            control = _exactly(file, 1) == b"\xf9"
            blocks = list(_sub_blocks(file))
            if control and blocks and len(blocks[0]) >= 4:
                hundredths = int.from_bytes(blocks[0][1:3], "little")
        elif mark == b",":
            left, top, wide, high, flags = struct.unpack("<HHHHB", _exactly(file, 9))
            # Pillow enlarges the whole animation for a picture that does not fit, the first one before its
            # size is looked at, any other one after.
            if index and (left + wide > width or top + high > height):
                raise DamagedAnimation(f"picture {index} is larger than the animation")
            width, height = max(width, left + wide), max(height, top + high)
            _skip_colours(file, flags)
            _exactly(file, 1)
            for _ in _sub_blocks(file):
                pass
            yield index, Fraction(hundredths, 100)
            hundredths, index = 0, index + 1


def _skip_colours(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        _exactly(file, 3 << ((flags & 7) + 1))


def _sub_blocks(file: BinaryIO) -> Iterator[bytes]:
    while size := _exactly(file, 1)[0]:
        yield _exactly(file, size)


def _webp(file: BinaryIO) -> Iterator[tuple[int, Fraction]]:
    _, size, _ = struct.unpack("<4sI4s", _exactly(file, 12))
    end, index = 8 + size, 0
    while file.tell() + 8 <= end:
        name, size = struct.unpack("<4sI", _exactly(file, 8))
        start = file.tell()
        if name == b"ANMF":
            yield index, Fraction(int.from_bytes(_exactly(file, 15)[12:], "little"), 1000)
            index += 1
        _skip_to(file, start + size)
        file.seek(size % 2, os.SEEK_CUR)  # padding, which some writers leave out at the end


def _png(file: BinaryIO) -> Iterator[tuple[int, Fraction]]:
    _exactly(file, 8)
    animated, index, name = False, 0, b""
    while name != b"IEND":
        size, name = struct.unpack(">I4s", _exactly(file, 8))
        start = file.tell()
        if name == b"acTL":
            animated = True
        elif name == b"fcTL" and animated:
            numerator, denominator = struct.unpack(">HH", _exactly(file, 24)[20:])
            # In microseconds: sums of thousands of odd fractions would have denominators without end.
            yield index, Fraction(numerator * 10**6 // (denominator or 100), 10**6)
            index += 1
        elif name == b"IDAT" and index == 0:
            index = 1  # A picture for readers without animations, which is not part of the animation.
        _skip_to(file, start + size + 4)


def _skip_to(file: BinaryIO, position: int) -> None:
    """Goes to a place that must not lie behind the end of the file."""
    file.seek(position - 1)
    _exactly(file, 1)


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise DamagedAnimation("it ends in the middle")
    return data
