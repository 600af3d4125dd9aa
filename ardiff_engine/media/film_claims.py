# SPDX-License-Identifier: Apache-2.0
"""What an mp4 or mov file claims to hold, checked before FFmpeg builds an index of it.

FFmpeg takes about 70 bytes for each sample (a frame, or a piece of sound), and two kilobytes of file can
claim millions of samples: all of one size, or all with a fragment's defaults.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ardiff_engine.media.limits import check_samples
from ardiff_engine.media.source import decoding, size_of, undecodable

# Boxes are looked for by name at any depth: FFmpeg knows dozens of places where one may lie in another.
_NAMES = re.compile(rb"stsz|stz2|trun|cmov|mdat")
_PIECE = 1 << 20
_AROUND = 16


def check_claims(path: Path, file: BinaryIO) -> None:
    """Raises MediaError for more samples than a file of this size can hold, or for a header in a form that
    hides how many there are."""
    size = size_of(file)
    fragments = 0
    with decoding(path):
        found = list(_found(file, size))
    for name, fields in found:
        if name in (b"cmov", b"mdat"):
            raise undecodable(path, f"a header with {name.decode()!r} in it")
        if name == b"trun":
            fragments += struct.unpack_from(">I", fields, 4)[0]
        else:
            sample_bytes, samples = struct.unpack_from(">II", fields, 4)
            check_samples(path, samples, sample_bytes if name == b"stsz" else 0, size)
    check_samples(path, fragments, 0, size)


def _found(file: BinaryIO, size: int) -> Iterator[tuple[bytes, bytes]]:
    """(name, the 12 bytes that follow it) for each name in the outermost boxes, but for the pictures and the
    sound themselves."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        length, name = struct.unpack(">I4s", file.read(8))
        start = at + 8
        if length == 1:
            length, start = int.from_bytes(file.read(8), "big"), at + 16
        end = min(at + length, size) if length else size
        if end < start:
            return
        if name != b"mdat":
            yield from _names_in(file, start, end)
        at = end


def _names_in(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    for at in range(start, end, _PIECE):
        file.seek(at)
        piece = file.read(min(_PIECE + _AROUND, end - at))
        for match in _NAMES.finditer(piece, 0, min(len(piece), _PIECE + 3)):
            fields = piece[match.end() : match.end() + 12]
            yield match[0], fields.ljust(12, b"\0")
