# SPDX-License-Identifier: Apache-2.0
"""Hostile pictures, animations, films and things that only call themselves so.

python -m tools.fuzz.media --files 5000
"""

from __future__ import annotations

import functools
import io
import random
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from ardiff_engine.errors import MediaError
from ardiff_engine.media import open_video
from tools.fuzz.mutate import mutated
from tools.fuzz.runner import Kind, main
from tools.fuzz.traps import Traps

SIZES = (0, 1, 2, 9400, 16383, 16384, 65535, 2**24, 2**27, 2**31 - 1, 2**32 - 1)
# Where the containers keep sizes, times, rates, turns and pixel shapes.
ATOMS = (
    b"tkhd",
    b"mvhd",
    b"mdhd",
    b"stts",
    b"ctts",
    b"stsd",
    b"avc1",
    b"pasp",
    b"elst",
    b"stsz",
    b"stsc",
    b"trun",
)
# Matroska: pixel sizes, durations, clock, block times.
ELEMENTS = (b"\xb0", b"\xba", b"\x44\x89", b"\x2a\xd7\xb1", b"\x54\xb0", b"\x54\xba", b"\xa3", b"\xe7")


def read(path: Path) -> None:
    """As VideoFolder reads (a window), and as read_video reads (everything)."""
    video = open_video(path)
    try:
        video.read(video.frames // 2, 4)
    except MediaError as error:
        if str(path) not in str(error):
            raise
    video.read()


def picture(kind: str, mode: str, **options: Any) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def grey_of_16_bits() -> bytes:
    file = io.BytesIO()
    Image.fromarray((np.arange(960, dtype=np.uint16) * 68).reshape(24, 40)).save(file, "PNG")
    return file.getvalue()


def animation(kind: str) -> bytes:
    file = io.BytesIO()
    frames = np.random.default_rng(1).integers(0, 255, (4, 24, 40, 3), np.uint8)
    first, *rest = map(Image.fromarray, frames)
    first.save(file, kind, save_all=True, append_images=rest, duration=[40, 120, 40, 80], loop=0)
    return file.getvalue()


def film(kind: str, codec: str, **options: str) -> bytes:
    frames = np.random.default_rng(2).integers(0, 255, (6, 32, 48, 3), np.uint8)
    with (
        tempfile.NamedTemporaryFile() as file
    ):  # an index that is moved to the front is written in two passes
        with av.open(file.name, "w", format=kind, options=options) as container:
            stream = container.add_stream(codec, rate=10, options={"g": "3", "threads": "1"})
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        return Path(file.name).read_bytes()


BASES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "png": ("x.png", functools.partial(picture, "PNG", "RGB")),
    "png-palette": ("x.png", functools.partial(picture, "PNG", "P", transparency=3)),
    "png-16": ("x.png", grey_of_16_bits),
    "png-animated": ("x.png", functools.partial(animation, "PNG")),
    "jpeg": ("x.jpg", functools.partial(picture, "JPEG", "RGB")),
    "jpeg-cmyk": ("x.jpg", functools.partial(picture, "JPEG", "CMYK", progressive=True)),
    "webp": ("x.webp", functools.partial(animation, "WEBP")),
    "gif": ("x.gif", functools.partial(animation, "GIF")),
    "mp4": ("x.mp4", functools.partial(film, "mp4", "libx264", movflags="faststart")),
    "mp4-fragmented": (
        "x.mp4",
        functools.partial(film, "mp4", "libx264", movflags="frag_keyframe+empty_moov"),
    ),
    "mov": ("x.mov", functools.partial(film, "mov", "mpeg4", movflags="faststart")),
    "mkv": ("x.mkv", functools.partial(film, "matroska", "libx264")),
    "webm": ("x.webm", functools.partial(film, "webm", "libvpx")),
    "avi": ("x.avi", functools.partial(film, "avi", "mpeg4")),
}


@functools.cache
def base(name: str) -> bytes:
    return BASES[name][1]()


def make(name: str, rng: random.Random, folder: Path, traps: Traps) -> Path:
    """A file of that kind with some bytes changed, half of the time where it states sizes and times."""
    data = base(name)
    if rng.random() < 0.5:
        data = restated(data, rng)
    if rng.random() < 0.8:
        data = mutated(data, rng)
    if name.startswith("png") and rng.random() < 0.7:
        data = with_checksums(data)
    # What a file holds decides, so that any name may be given to it.
    path = folder / (BASES[name][0] if rng.random() < 0.8 else rng.choice(["x.mp4", "x.png", "a:b%03d.gif"]))
    path.write_bytes(data)
    return path


def restated(data: bytes, rng: random.Random) -> bytes:
    """A size, a time or a rate replaced by one that a hostile writer would choose."""
    changed = bytearray(data)
    if data.startswith(b"\x89PNG"):
        places = [16, 20, *(at + 4 + 4 * rng.randrange(6) for at in found(data, (b"fcTL", b"acTL")))]
        number = struct.pack(">I", rng.choice(SIZES))
    elif data.startswith(b"\xff\xd8"):
        places = [at + 5 for at in found(data, (b"\xff\xc0", b"\xff\xc2"))]
        number = struct.pack(">HH", rng.choice(SIZES) & 0xFFFF, rng.choice(SIZES) & 0xFFFF)
    elif data.startswith(b"GIF"):
        places = [6, 8, *(at + 4 for at in found(data, (b"!\xf9\x04",)))]
        number = struct.pack("<H", rng.choice(SIZES) & 0xFFFF)
    elif data[8:12] == b"WEBP":
        places = [24, 27, *(at + 8 + 3 * rng.randrange(5) for at in found(data, (b"ANMF",)))]
        number = struct.pack("<I", rng.choice(SIZES) & 0xFFFFFF)[:3]
    elif data[8:12] == b"AVI ":
        places = [at + 8 + 4 * rng.randrange(14) for at in found(data, (b"avih", b"strh", b"strf"))]
        number = struct.pack("<I", rng.choice(SIZES))
    elif data.startswith(b"\x1aE\xdf\xa3"):
        places = [at + rng.randrange(1, 5) for at in found(data, ELEMENTS)]
        number = rng.randbytes(rng.randrange(1, 9))
    else:
        places = [at + 4 * rng.randrange(1, 22) for at in found(data, ATOMS)]
        number = struct.pack(">I", rng.choice(SIZES))
    for at in rng.sample(places, min(len(places), rng.randrange(1, 4))):
        changed[at : at + len(number)] = number
    return bytes(changed)


def found(data: bytes, marks: tuple[bytes, ...]) -> list[int]:
    return [at for mark in marks for at in range(len(data)) if data.startswith(mark, at)]


def with_checksums(data: bytes) -> bytes:
    """A PNG whose checksums fit what it holds, so that the decoder goes on to that."""
    changed, at = bytearray(data), 8
    while at + 12 <= len(changed):
        size = struct.unpack_from(">I", changed, at)[0]
        if at + 12 + size > len(changed):
            break
        struct.pack_into(">I", changed, at + 8 + size, zlib.crc32(changed[at + 4 : at + 8 + size]))
        at += 12 + size
    return bytes(changed)


def disguised(rng: random.Random, folder: Path, traps: Traps) -> Path:
    """What makes other readers open files and ports, or start programs, called a picture or a film."""
    canary, url = rng.choice(traps.files), f"http://127.0.0.1:{traps.port}/z.mp4"
    target = rng.choice(
        [str(canary), f"file://{canary}", url, f"concat:{canary}|{canary}", f"subfile:{canary}"]
    )
    text = rng.choice(
        [
            f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n",
            f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n',
            f"ffconcat version 1.0\nfile '{target}'\n",
            f"ffconcat version 1.0\nfile {canary.name}\noption safe 0\n",
            f'<?xml version="1.0"?><MPD><Period><BaseURL>{target}</BaseURL></Period></MPD>',
            f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{target}"/></svg>',
            f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({target}) run showpage\n%%EOF\n",
            f"push graphic-context\nviewbox 0 0 9 9\nimage over 0,0 0,0 '{target}'\npop graphic-context\n",
            f"v=0\nc=IN IP4 127.0.0.1\nm=video {traps.port} RTP/AVP 96\n",
            f"[playlist]\nFile1={target}\nNumberOfEntries=1\n",
        ]
    )
    data = text.encode()
    if rng.random() < 0.3:
        data = rng.choice([base("png")[:8], base("gif")[:6], base("mp4")[:24], base("webm")[:40]]) + data
    if rng.random() < 0.3:
        data = mutated(data, rng)
    path = folder / rng.choice(
        ["x.mp4", "x.png", "x.gif", "x.m3u8", "x.webm", "x%d.png", "12:30.mp4", "-i.mp4"]
    )
    path.write_bytes(data)
    return path


def picture_folder(rng: random.Random, folder: Path, traps: Traps) -> Path:
    """A folder of pictures, some of which are hostile."""
    inner = folder / "frames"
    inner.mkdir()
    for _ in range(rng.randrange(4)):
        name = rng.choice(["png", "png-16", "jpeg", "gif", "png-animated"])
        made = make(name, rng, inner, traps) if rng.random() < 0.3 else inner / "x"
        if made.name == "x":
            made.write_bytes(base(name))
        made.rename(inner / f"f{rng.randrange(10**9)}{rng.choice(['.png', '.jpg', '.PNG', '.txt'])}")
    return inner


KINDS = [
    *(Kind(name, functools.partial(make, name), read) for name in BASES),
    Kind("disguised", disguised, read),
    Kind("folder", picture_folder, read, share=0.5),
]

if __name__ == "__main__":
    sys.exit(main(KINDS))
