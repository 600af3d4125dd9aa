# SPDX-License-Identifier: Apache-2.0
"""Small films for the tests of reading: any times, clock, turn, pixel shape, codec and container."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi"}
CODECS = {".webm": "libvpx", ".avi": "mpeg4"}


def quadrants(height: int = 64, width: int = 96) -> np.ndarray:
    """One picture [H, W, 3] that looks different from every side: red, green / blue, white."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (220, 30, 30)
    picture[: height // 2, width // 2 :] = (30, 200, 30)
    picture[height // 2 :, : width // 2] = (30, 30, 220)
    picture[height // 2 :, width // 2 :] = 250
    return picture


def shades(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """[T, H, W, 3]: frame i has the grey 10 + 6 i, so that it can be recognised after compression."""
    levels = (10 + 6 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def shade_numbers(frames: np.ndarray) -> list[int]:
    """Which frames of `shades` these are."""
    return [round((float(frame.mean()) - 10) / 6) for frame in frames]


def write_film(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    rate: float | Fraction = 10,
    ticks: Sequence[int] | None = None,
    clock: Fraction | None = None,
    matrix: Sequence[int] | None = None,
    aspect: Fraction | None = None,
    group: int = 12,
    codec: str | None = None,
    backward: int = 2,
    audio: float = 0.0,
    **options: str,
) -> Path:
    """ticks: the time of each frame in units of `clock` seconds; left out, frames come at `rate`. matrix: a
    display matrix (nine numbers). group: frames from one key frame to the next. backward: how many frames in
    a row are predicted from a later one, which is then stored before them. audio: seconds of silence."""
    rate = Fraction(rate).limit_denominator(1001)
    with av.open(str(path), "w", format=FORMATS[path.suffix], options=options) as container:
        name = codec or CODECS.get(path.suffix, "libx264")
        settings = {"g": str(group), "threads": "1"} | ({} if codec == "mjpeg" else {"bf": str(backward)})
        stream = container.add_stream(name, rate=rate, options=settings)
        stream.pix_fmt = "yuvj420p" if name == "mjpeg" else "yuv420p"
        stream.bit_rate = 4_000_000
        if clock is not None:
            stream.codec_context.time_base = clock
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if matrix is not None:
            stream.set_display_matrix(list(matrix))
        sound = container.add_stream("aac", rate=8000, layout="mono") if audio else None
        for index, frame in enumerate(frames):
            if index == 0:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = index if ticks is None else ticks[index]
            picture.time_base = clock or 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        if sound is not None:
            for index in range(int(audio * 8000 / 1024)):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                silence.sample_rate, silence.pts = 8000, 1024 * index
                container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
    return path


def write_changing_film(path: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """Motion JPEG in Matroska, in which every frame brings its own size (height, width)."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = sizes[0][1], sizes[0][0], "yuvj420p"
        for index, (height, width) in enumerate(sizes):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
            encoder.time_base = Fraction(1, 10)
            frame = av.VideoFrame.from_ndarray(quadrants(height, width), format="rgb24")
            for packet in [*encoder.encode(frame), *encoder.encode(None)]:
                packet.stream, packet.pts, packet.dts, packet.time_base = (
                    stream,
                    index,
                    index,
                    Fraction(1, 10),
                )
                container.mux(packet)
    return path
