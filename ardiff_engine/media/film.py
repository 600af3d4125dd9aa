# SPDX-License-Identifier: Apache-2.0
"""Films (mp4, mov, mkv, webm, avi) as videos: frames by time, from any moment on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from ardiff_engine.media.film_claims import check_claims
from ardiff_engine.media.film_file import film_stream, frames_of, open_container, packets_of, seek
from ardiff_engine.media.film_picture import shown_pixels, square_size, stated_orientation
from ardiff_engine.media.film_times import duration_of, ends_of, own_rate, promised_end, seconds_of
from ardiff_engine.media.limits import check_length, check_picture
from ardiff_engine.media.pixels import Pixels
from ardiff_engine.media.rate import at_rate, slot
from ardiff_engine.media.source import decoding, opened, size_of, undecodable
from ardiff_engine.media.video import Video

# Packets whose times are looked at to tell a film's own rate.
FIRST_PACKETS = 256
# Containers round the time of their longest track, and tracks of sound end in the middle of a packet.
UNSURE = Fraction(1, 10)
# Seconds before the wanted frame at which seeking is tried. An index may hold times of decoding, which lie
# before those of showing.
RUN_UPS = (0, 1, 10)


@dataclass(frozen=True)
class Film(Video):
    """kind: FFmpeg's demuxer. rate: frames per second. period: the usual seconds from one picture to the
    next. start, end: the seconds on the film's own clock at which the first picture appears and the last one
    ends. stored: width and height in square pixels, before the picture is turned as `orientation` (EXIF's 1
    to 8) says."""

    kind: str
    rate: Fraction
    period: Fraction
    start: Fraction
    end: Fraction
    stored: tuple[int, int]
    orientation: int

    def play(self, first: int = 0) -> Iterator[Pixels]:
        wanted = self.start + first / self.rate
        places = [wanted - run_up for run_up in RUN_UPS if wanted - run_up > self.start]
        with opened(self.path) as file:
            for place in [*places, None]:
                with open_container(self.path, file, self.kind) as container:
                    pictures = self._pictures(container, place)
                    earliest = next(pictures, None)
                    if earliest is not None and (place is None or slot(earliest[0], self.rate) <= first):
                        yield from at_rate(chain([earliest], pictures), self.rate, first, self.frames)
                        return
        raise undecodable(self.path, "no frames")

    def _pictures(
        self, container: Any, place: Fraction | None
    ) -> Iterator[tuple[Fraction, Callable[[], Pixels]]]:
        """(seconds after the first picture, how to make the pixels), from the key frame before `place` on."""
        stream = film_stream(self.path, container, self.file_bytes)
        if place is not None and not seek(self.path, container, stream, place):
            return  # the caller then plays from the start
        period = self.period
        last, end = self.start - period, self.start
        for packet in packets_of(self.path, container, stream):
            for frame in frames_of(self.path, packet):
                seconds = seconds_of(frame.pts, stream, last + period)
                if seconds >= last:
                    last, end = seconds, seconds + max(seconds_of(frame.duration, stream, period), period)
                make = partial(shown_pixels, self.path, frame, stream, self.stored, self.orientation)
                yield seconds - self.start, make
        if end + period / 2 < self.end:
            whole, left = float(self.end - self.start), float(end - self.start)
            raise undecodable(self.path, f"it ends after {left:.2f} of {whole:.2f} seconds")


def open_film(path: Path, file: BinaryIO, kind: str, fps: Fraction | None) -> Film:
    """What is known of a film from its first frame and the times of its last packets; `fps` replaces its own
    rate.

    Raises:
        MediaError: damaged, cut off, without pictures, or with pictures or times beyond what a file of its
            size may ask for.
    """
    size = size_of(file)
    if kind == "mov":
        check_claims(path, file)
    with open_container(path, file, kind) as container:
        stream = film_stream(path, container, size)
        picture, times = _first_packets(path, container, stream)
        stored = square_size(path, picture, stream)
        check_picture(path, *stored, size)
        orientation = stated_orientation(path, picture)
        height, width = shown_pixels(path, picture, stream, stored, orientation).shape[:2]
        with decoding(path):
            own = own_rate(times, [stream.base_rate, stream.average_rate])
            start = seconds_of(picture.pts, stream, Fraction(0))
            promised = promised_end(container, stream, kind, start)
            longest = duration_of(container)
    period = 1 / own
    end, last = _last_packets(path, file, kind, promised or longest, period)
    if promised is not None:
        # In fragments, the duration is a sum of steps from one packet to the next.
        slack = (promised - start) / 20 + period if kind == "mov" else period / 2
        whole = end + slack >= promised
        end = max(end, promised)
    else:
        whole = kind != "matroska" or longest is None or last + UNSURE >= longest
    if not whole:
        raise undecodable(
            path, f"it ends at {float(last):.2f} of {float(promised or longest or 0):.2f} seconds"
        )
    rate = fps or own
    frames = max(slot(end - start, rate), 1)
    check_length(path, frames, size)
    return Film(
        path=path,
        frames=frames,
        height=height,
        width=width,
        fps=float(rate),
        file_bytes=size,
        kind=kind,
        rate=rate,
        period=period,
        start=start,
        end=end,
        stored=stored,
        orientation=orientation,
    )


def _first_packets(path: Path, container: Any, stream: Any) -> tuple[Any, list[Fraction]]:
    """The first frame, and the times of the first packets in seconds."""
    picture: Any = None
    times: list[Fraction] = []
    for packet in packets_of(path, container, stream):
        if packet.size:
            ticks = packet.dts if packet.pts is None else packet.pts
            times.append(seconds_of(ticks, stream, Fraction(0)))
        if picture is None:
            picture = next(iter(frames_of(path, packet)), None)
        if picture is not None and len(times) >= FIRST_PACKETS:
            break
    if picture is None:
        raise undecodable(path, "no frames")
    return picture, times


def _last_packets(
    path: Path, file: BinaryIO, kind: str, near: Fraction | None, period: Fraction
) -> tuple[Fraction, Fraction]:
    """The seconds at which the last picture and the last packet end. Only what follows the last key frame
    before `near` is read, or everything where that says nothing."""
    for place in (near, None):
        with open_container(path, file, kind) as container:
            stream = film_stream(path, container, size_of(file))
            if place is not None and not seek(path, container, stream, place):
                continue
            pictures, everything = ends_of(packets_of(path, container), stream, period)
        if pictures is not None:
            return pictures, everything
    raise undecodable(path, "no frames")
