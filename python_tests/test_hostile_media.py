# SPDX-License-Identifier: Apache-2.0
"""No picture or film hurts who reads it: nothing else is opened, nothing is waited for, little is taken."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import sys
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from effort import ALL
from media_files import quadrants, shade_numbers, shades, write_film
from PIL import Image

from ardiff_engine.errors import MediaError
from ardiff_engine.media import film, open_video, read_clip, read_video

sys.path.insert(0, str(Path(__file__).parents[1]))
from tools.fuzz import media as hostile
from tools.fuzz import runner


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a program leaves its name when it is started."""
    started = tmp_path / "started"
    started.mkdir()
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gs", "sh", "ffmpeg", "convert", "dwebp"):
        (folder / name).write_text(f"#!/bin/sh\necho >> '{started / name}'\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return started


def _eps(path: Path) -> None:
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")


def _tiff_of_two_sizes(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path, "TIFF", save_all=True, append_images=[Image.new("RGB", (4, 6))])


def _other(kind: str) -> Callable[[Path], None]:
    return lambda path: Image.new("RGB", (8, 8)).save(path, kind)


@pytest.mark.parametrize("name", ["x.png", "x.gif", "x.mp4", "x.jpg", "x.webp"])
@pytest.mark.parametrize(
    "make",
    [_eps, _tiff_of_two_sizes, *(_other(kind) for kind in ("TIFF", "BMP", "ICO", "PPM", "PDF", "TGA"))],
)
@pytest.mark.parametrize("in_folder", [False, True])
def test_other_kinds_of_pictures_are_never_opened(
    tmp_path: Path, programs: Path, name: str, make: Callable[[Path], None], in_folder: bool
) -> None:
    (tmp_path / "given").mkdir()
    make(tmp_path / "given" / name)
    with pytest.raises(MediaError):
        read_video(tmp_path / "given" if in_folder else tmp_path / "given" / name)
    assert list(programs.iterdir()) == []


def test_pictures_and_films_are_opened_in_one_place_each() -> None:
    package = Path(film.__file__).parents[1]
    code = {path.relative_to(package).as_posix(): path.read_text("utf-8") for path in package.rglob("*.py")}
    assert [name for name, text in code.items() if "Image.open(" in text] == ["media/picture.py"]
    films = {name for name, text in code.items() if re.search(r"av\.open\(|imageio|cv2", text)}
    assert films == {"media/film_file.py", "media/mp4.py"}  # the latter writes


def _peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


@contextlib.contextmanager
def _little_memory(megabytes: float = 150) -> Any:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of memory is asked from Linux")
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    yield
    assert _peak() - before < megabytes


def _png_of(width: int, height: int) -> bytes:
    """A complete picture, all black."""
    packer = zlib.compressobj(6)
    row = bytes(1 + 3 * width)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", body),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _claim(data: bytes, at: int, form: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("sizes", [(9400, 9400), (65535, 65535), (30000, 3000), (1 << 30, 1), (5000, 5000)])
def test_pictures_larger_than_their_file_can_hold(tmp_path: Path, sizes: tuple[int, int]) -> None:
    width, height = sizes
    small = {kind: io.BytesIO() for kind in ("PNG", "JPEG", "GIF", "WEBP")}
    for kind, file in small.items():
        Image.fromarray(quadrants()).save(file, kind)
    data = {kind: file.getvalue() for kind, file in small.items()}
    png = hostile.with_checksums(_claim(data["PNG"], 16, ">II", width, height))
    made = {"claimed.png": png}
    if max(sizes) < 65536:
        frame = data["JPEG"].index(b"\xff\xc0") + 5
        made["claimed.jpg"] = _claim(data["JPEG"], frame, ">HH", height, width)
        made["claimed.gif"] = _claim(data["GIF"], 6, "<HH", width, height)
    if sizes == (9400, 9400):
        made["complete.png"] = _png_of(width, height)
    with _little_memory():
        for name, content in made.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(MediaError, match="pixels"):
                read_video(tmp_path / name)
            with pytest.raises(MediaError, match="pixels"):
                open_video(tmp_path / name)


def test_a_large_picture_in_a_large_file_is_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 450, 3), np.uint8)
    Image.fromarray(np.tile(noise, (5, 10, 1))).save(tmp_path / "x.jpg", quality=50)
    assert read_video(tmp_path / "x.jpg").shape == (1, 4500, 4500, 3)
    (tmp_path / "x.png").write_bytes(_png_of(4096, 4096))
    assert read_video(tmp_path / "x.png").shape == (1, 4096, 4096, 3)


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png"])
def test_three_pictures_cannot_claim_hours(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(frame) for frame in shades(3, 400, 600)]
    path = tmp_path / f"x{suffix}"
    durations = {".gif": [10, 600_000, 600_000], ".webp": [1, 60_000, 60_000], ".png": [1, 60_000, 60_000]}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations[suffix])
    with _little_memory():
        with pytest.raises(MediaError, match="frames"):
            read_video(path)
        with pytest.raises(MediaError, match="frames"):
            read_video(path, max_frames=4)
        # At a rate that somebody chose, it is an ordinary video.
        assert len(open_video(path, fps=0.1).read()) >= 12


def test_a_later_picture_of_a_gif_cannot_enlarge_it(tmp_path: Path) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (3, 24, 40, 3), np.uint8)
    frames = [Image.fromarray(frame) for frame in noise]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    data = file.getvalue()
    pictures = [at for at in range(len(data)) if data[at : at + 5] == b",\0\0\0\0"]
    assert len(pictures) == 3
    (tmp_path / "x.gif").write_bytes(_claim(data, pictures[1] + 1, "<HHHH", 0, 0, 12000, 11000))
    with _little_memory(), pytest.raises(MediaError, match="animation"):
        open_video(tmp_path / "x.gif")
    # Old writers leave the size to the first picture.
    (tmp_path / "x.gif").write_bytes(_claim(data, 6, "<HH", 0, 0))
    assert read_video(tmp_path / "x.gif").shape == (3, 24, 40, 3)


def test_a_gap_of_days_is_refused_and_one_of_minutes_is_not(tmp_path: Path) -> None:
    for name, seconds in (("days.mp4", 200_000), ("minutes.mp4", 120)):
        ticks = [0, 1, 2, 10 * seconds, 10 * seconds + 1]
        write_film(tmp_path / name, shades(5), ticks=ticks, clock=Fraction(1, 10), backward=0)
    with pytest.raises(MediaError, match="frames"):
        open_video(tmp_path / "days.mp4")
    video = open_video(tmp_path / "minutes.mp4")
    assert video.frames >= 1202
    assert shade_numbers(video.read(1198, 4)) == [2, 2, 3, 4]


def test_films_that_claim_large_pictures(tmp_path: Path) -> None:
    large = np.zeros((1080, 1920, 3), np.uint8)
    path = write_film(tmp_path / "x.mkv", [large] * 2, codec="mpeg4")
    data = path.read_bytes()
    # The container's own word, two bytes after PixelWidth and PixelHeight; the stream keeps its truth.
    for mark, value in ((b"\xb0\x82", 60000), (b"\xba\x82", 60000)):
        data = _claim(data, data.index(mark) + 2, ">H", value)
    path.write_bytes(data)
    with _little_memory(), contextlib.suppress(MediaError):
        assert read_video(path).shape[1:] == (1080, 1920, 3)


def test_a_whole_video_is_refused_by_what_it_takes_and_not_by_what_it_holds(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (1000, 1000), grey) for grey in ("black", "white", "red")]
    path = tmp_path / "x.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 30_000, 100])
    with _little_memory():
        with pytest.raises(MediaError, match="max_frames"):
            read_video(path)  # 906 MB
        assert read_clip(path, size=32).frames.shape == (302, 32, 32, 3)
        assert read_video(path, max_frames=3).shape == (3, 1000, 1000, 3)
        assert open_video(path).read(300, 2).shape == (2, 1000, 1000, 3)


def _put(data: bytes, box: bytes, at: int, form: str, *values: int) -> bytes:
    """Numbers in the first box of that name, `at` bytes after the name."""
    return _claim(data, data.index(box) + 4 + at, form, *values)


@pytest.mark.parametrize("samples", [2**20, 2**24, 2**27, 2**31 - 1])
def test_films_that_claim_millions_of_samples(tmp_path: Path, samples: int) -> None:
    plain = write_film(tmp_path / "x.mp4", shades(20)).read_bytes()
    plain = _put(_put(plain, b"stsz", 4, ">II", 10, samples), b"stsc", 4, ">IIII", 1, 1, samples, 1)
    plain = _put(plain, b"stts", 8, ">II", samples, 1)
    in_fragments = write_film(
        tmp_path / "x.mp4", shades(20), movflags="frag_keyframe+empty_moov"
    ).read_bytes()
    with _little_memory():
        for data in (
            plain,
            _put(in_fragments, b"trun", 4, ">I", samples),
            _put(in_fragments, b"trun", 0, ">II", 0, samples),
        ):
            (tmp_path / "x.mp4").write_bytes(data)
            with pytest.raises(MediaError, match="samples"):
                read_video(tmp_path / "x.mp4")


def test_a_header_that_hides_what_it_holds_is_refused(tmp_path: Path) -> None:
    data = write_film(tmp_path / "x.mp4", shades(5), movflags="faststart").read_bytes()
    (tmp_path / "x.mp4").write_bytes(data.replace(b"udta", b"cmov"))
    with pytest.raises(MediaError, match="cmov"):
        read_video(tmp_path / "x.mp4")


def test_sound_of_many_samples_is_not_taken_for_an_attack(tmp_path: Path) -> None:
    path = tmp_path / "x.mov"
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=1)
        picture.width, picture.height, picture.pix_fmt = 48, 32, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=48000, layout="mono")
        for second, frame in enumerate(shades(4)):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.int16), "s16", "mono")
            samples.sample_rate, samples.pts = 48000, 48000 * second
            container.mux(sound.encode(samples))
        container.mux([*picture.encode(None), *sound.encode(None)])
    assert shade_numbers(read_video(path)) == [0, 1, 2, 3]


def test_a_picture_of_a_thousand_passes_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(quadrants(256, 256)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    (tmp_path / "x.jpg").write_bytes(data)
    assert read_video(tmp_path / "x.jpg").shape == (1, 256, 256, 3)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    (tmp_path / "x.jpg").write_bytes(data[:-2] + 1000 * last_scan + data[-2:])
    with pytest.raises(MediaError, match="scans"):
        read_video(tmp_path / "x.jpg")


FOREIGN = [
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    AssertionError(),
    OverflowError("too large"),
    MemoryError(),
    RecursionError("too deep"),
    KeyError("tag"),
    ZeroDivisionError(),
    EOFError(),
    OSError("I/O"),
    NotImplementedError(),
    type("NeverSeenBefore", (Exception,), {})("new in the next release"),
]


@pytest.mark.parametrize("error", FOREIGN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["av.open", "Image.open", "Image.convert"])
def test_whatever_a_library_raises_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, place: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    write_film(tmp_path / "x.mp4", shades(2))
    Image.fromarray(quadrants()).save(tmp_path / "x.png")
    owner, name = {"av.open": (av, "open"), "Image.open": (Image, "open")}.get(
        place, (Image.Image, "convert")
    )
    monkeypatch.setattr(owner, name, fail)
    path = tmp_path / ("x.mp4" if owner is av else "x.png")
    with pytest.raises(MediaError, match=path.name) as caught:
        read_video(path)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise stop

    Image.fromarray(quadrants()).save(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "convert", interrupted)
    with pytest.raises(stop):
        read_video(tmp_path / "x.png")


def test_a_bug_of_ours_stays_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> Any:
        raise KeyError("ours")

    path = write_film(tmp_path / "x.mp4", shades(2))
    monkeypatch.setattr(film, "slot", bug)
    with pytest.raises(KeyError):
        read_video(path)


def test_mutated_files_do_no_harm(tmp_path: Path) -> None:
    files = (320 if ALL else 15) * len(hostile.KINDS)
    outcomes = runner.run(hostile.KINDS, files, seed=20, keep=tmp_path)
    assert {outcome.kind for outcome in outcomes} == {kind.name for kind in hostile.KINDS}
    assert [outcome for outcome in outcomes if outcome.problem] == []
