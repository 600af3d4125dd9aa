# SPDX-License-Identifier: Apache-2.0
"""Film files in FFmpeg (PyAV): which ones, how they are opened, and their frames as they are decoded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from ardiff_engine.errors import MediaError
from ardiff_engine.media.limits import check_picture, max_pixels
from ardiff_engine.media.mp4 import pyav
from ardiff_engine.media.source import decoding, size_of, undecodable

# Each thread holds pictures of its own.
DECODING_THREADS = min(4, os.cpu_count() or 1)


def film_kind(head: bytes) -> str | None:
    """FFmpeg's demuxer by a file's first bytes; None for what is no film. Playlists, which open other files,
    are not among them."""
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        return "mov"
    return None


@contextlib.contextmanager
def open_container(path: Path, file: BinaryIO, kind: str) -> Iterator[Any]:
    """The container in an open file. FFmpeg gets no path and may open nothing else.

    Raises:
        MediaError: damaged, or PyAV is missing.
    """
    av = pyav()
    file.seek(0)
    with decoding(path):
        container = av.open(
            file,
            format=kind,
            # The decoders that look at the first frames obey the limit as well.
            options={"max_pixels": str(max_pixels(size_of(file)))},
            metadata_errors="replace",
            io_open=_refuse,
        )
    try:
        yield container
    finally:
        container.close()


def film_stream(path: Path, container: Any, file_bytes: int) -> Any:
    """The film's main video track, ready to decode pictures of the size that its file allows."""
    with decoding(path):
        stream = container.streams.best("video")
        context = None if stream is None else stream.codec_context
    if stream is None:
        raise undecodable(path, "no video track")
    if context is None:
        raise undecodable(path, "a kind of compression that FFmpeg does not know")
    check_picture(path, context.width, context.height, file_bytes)
    with decoding(path):
        context.options = {"max_pixels": str(max_pixels(file_bytes))}
        context.thread_type = "AUTO"
        context.thread_count = DECODING_THREADS
    return stream


def seek(path: Path, container: Any, stream: Any, seconds: Fraction) -> bool:
    """Goes to the last key frame at or before a time. False where that cannot be, as without an index."""
    try:
        with decoding(path):
            container.seek(int(seconds / stream.time_base), stream=stream)
    except MediaError:
        return False
    return True


def packets_of(path: Path, container: Any, *streams: Any) -> Iterator[Any]:
    """Packets of these tracks, or of all, in the file's order; at the end an empty one for each."""
    with decoding(path):
        packets = container.demux(*streams)
    while True:
        with decoding(path):
            packet = next(packets, None)
        if packet is None:
            return
        if packet.is_corrupt:
            raise undecodable(path, "a damaged packet")
        yield packet


def frames_of(path: Path, packet: Any) -> list[Any]:
    """What the decoder gives for a packet: some frames or none, in order of time."""
    with decoding(path):
        return list(packet.decode())


def _refuse(url: str, flags: int, options: dict[str, str]) -> Any:
    raise PermissionError(f"it asks for another file: {url!r}")
