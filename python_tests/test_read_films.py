# SPDX-License-Identifier: Apache-2.0
"""Films are read as a player shows them: upright, in square pixels, by time, from any moment on."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_files import quadrants, shade_numbers, shades, write_changing_film, write_film

from ardiff_engine.errors import MediaError
from ardiff_engine.media import film, open_video, read_clip, read_video

ONE = 1 << 16
TURNS = [
    (a, b, c, d)
    for a, b, c, d in product((-1, 0, 1), repeat=4)
    if abs(a * d - b * c) == 1 and abs(a) + abs(b) == 1 and abs(c) + abs(d) == 1
]


def shown(picture: np.ndarray, turn: tuple[int, int, int, int]) -> np.ndarray:
    """The pixel at (x, y) moves to (a x + c y, b x + d y): the definition, pixel by pixel."""
    a, b, c, d = turn
    y, x = np.indices(picture.shape[:2])
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    turned = np.zeros((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    turned[to_y, to_x] = picture
    return turned


def apart(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_all_eight_turns_are_shown_upright(
    tmp_path: Path, turn: tuple[int, int, int, int], suffix: str
) -> None:
    a, b, c, d = (ONE * value for value in turn)
    path = write_film(tmp_path / f"x{suffix}", [quadrants()] * 3, matrix=[a, b, 0, c, d, 0, 0, 0, 1 << 30])
    frames = read_video(path)
    assert len(frames) == 3 and apart(frames[1], shown(quadrants(), turn)) < 6
    video = open_video(path)
    assert (video.height, video.width) == frames.shape[1:3]


def test_a_turn_by_an_odd_angle_is_refused_and_a_small_error_of_a_phone_is_not(tmp_path: Path) -> None:
    for name, slant in (("slanted", 0.4), ("straight", 0.001)):
        a, b = round(ONE * slant), round(ONE * (1 - slant**2) ** 0.5)
        write_film(tmp_path / f"{name}.mp4", [quadrants()] * 2, matrix=[a, b, 0, -b, a, 0, 0, 0, 1 << 30])
    assert apart(read_video(tmp_path / "straight.mp4")[0], shown(quadrants(), (0, 1, -1, 0))) < 6
    with pytest.raises(MediaError, match="turned"):
        read_video(tmp_path / "slanted.mp4")


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(1, 2), Fraction(4, 3), Fraction(10, 11)])
@pytest.mark.parametrize(
    ("suffix", "turn"),
    [(".mp4", (1, 0, 0, 1)), (".mp4", (0, 1, -1, 0)), (".mov", (-1, 0, 0, 1)), (".mkv", (1, 0, 0, 1))],
)
def test_pixels_become_square_before_the_picture_is_turned(
    tmp_path: Path, aspect: Fraction, suffix: str, turn: tuple[int, int, int, int]
) -> None:
    a, b, c, d = (ONE * value for value in turn)
    matrix = None if suffix == ".mkv" else [a, b, 0, c, d, 0, 0, 0, 1 << 30]
    path = write_film(tmp_path / f"x{suffix}", [quadrants()] * 2, aspect=aspect, matrix=matrix)
    wide = quadrants(64, round(96 * aspect))
    assert apart(read_video(path)[0], shown(wide, turn)) < 8


@pytest.mark.parametrize(
    ("milliseconds", "fps", "expected"),
    [
        ([0, 33, 67, 100, 1100, 1133, 1167, 1200], 30, [0, 1, 2, *[3] * 30, 4, 5, 6, 7]),
        ([0, 40, 80, 120, 520, 560, 2560, 2600], 25, [0, 1, 2, *[3] * 10, 4, *[5] * 50, 6, 7]),
        ([0, 103, 197, 305, 398, 501, 600, 702], 10, list(range(8))),  # a clock that trembles
        ([0, 100, 200, 240, 280, 400, 500, 600], 10, [0, 1, 3, 4, 5, 6, 7]),  # three that are too close
        ([500, 600, 700, 800], 10, [0, 1, 2, 3]),  # a film that begins later
        ([0, 1000, 2000, 5000], 1, [0, 1, 2, 2, 2, 3]),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_frames_are_taken_by_time(
    tmp_path: Path, milliseconds: Sequence[int], fps: float, expected: list[int], suffix: str
) -> None:
    frames = shades(len(milliseconds))
    path = write_film(tmp_path / f"x{suffix}", frames, rate=fps, ticks=milliseconds, clock=Fraction(1, 1000))
    video = open_video(path)
    assert video.fps == pytest.approx(fps, rel=0.07)
    found = shade_numbers(open_video(path, fps=fps).read())
    # How long the last picture stands is for the container to say.
    assert found[: len(expected)] == expected and set(found[len(expected) :]) <= {expected[-1]}


@pytest.mark.parametrize("fps", [2, 5, 10, 20, 30, Fraction(30000, 1001), 300])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi"])
def test_another_rate_repeats_or_leaves_out_frames(tmp_path: Path, fps: float, suffix: str) -> None:
    path = write_film(tmp_path / f"x{suffix}", shades(20), rate=10)
    video = open_video(path, fps=float(fps))
    found = shade_numbers(video.read())
    assert video.fps == pytest.approx(float(fps)) and len(found) == round(2 * fps)
    for index, number in enumerate(found):
        assert abs(number / 10 - index / fps) <= max(0.05 + 0.5 / fps, 0.1) + 1e-6


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), 25, Fraction(30000, 1001), 12, 60, 1])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".mov"])
def test_a_constant_rate_is_found_exactly_and_no_frame_is_repeated(
    tmp_path: Path, rate: Fraction, suffix: str
) -> None:
    path = write_film(tmp_path / f"x{suffix}", shades(30), rate=rate)
    clip = read_clip(path)
    assert clip.fps == pytest.approx(float(rate), rel=1e-3)
    assert shade_numbers(clip.frames) == list(range(30))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".mov"])
@pytest.mark.parametrize("group", [1, 7, 250])
def test_every_window_is_that_part_of_the_whole(tmp_path: Path, suffix: str, group: int) -> None:
    video = open_video(write_film(tmp_path / f"x{suffix}", shades(40), rate=25, group=group))
    whole = video.read()
    assert shade_numbers(whole) == list(range(40))
    for first in (0, 1, 6, 7, 8, 20, 33, 39):
        np.testing.assert_array_equal(video.read(first, 5), whole[first : first + 5])


def test_windows_begin_in_gaps_as_well(tmp_path: Path) -> None:
    ticks = [0, 1, 2, 22, 23, 24, 64, 65]
    video = open_video(write_film(tmp_path / "x.mp4", shades(8), ticks=ticks, clock=Fraction(1, 10), group=3))
    whole = video.read()
    assert len(whole) >= 66
    for first in range(0, 66, 3):
        np.testing.assert_array_equal(video.read(first, 4), whole[first : first + 4])


def test_a_window_of_an_hour_decodes_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_film(
        tmp_path / "hour.mp4", (shades(1)[0] + index % 40 for index in range(3600)), rate=1, group=20
    )
    decoded = 0
    frames_of = film.frames_of

    def counting(*arguments: Any) -> list[Any]:
        nonlocal decoded
        frames = frames_of(*arguments)
        decoded += len(frames)
        return frames

    monkeypatch.setattr(film, "frames_of", counting)
    video = open_video(path)
    assert (video.frames, video.fps) == (3600, 1.0)
    assert decoded <= 16  # one frame, and what the decoder's threads had under way
    decoded = 0
    window = video.read(3210, 16)
    # From the key frame before it to its end, and again what was under way.
    assert decoded <= 20 + 16 + 16
    assert [round(float(frame.mean())) - 10 for frame in window] == pytest.approx(
        [index % 40 for index in range(3210, 3226)], abs=2
    )


def _peak_megabytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is asked from Linux"
)
def test_memory_is_that_of_the_window_whatever_the_length(tmp_path: Path) -> None:
    picture = quadrants(360, 640)
    pictures = (picture for _ in range(360))  # 249 MB of pixels
    path = write_film(tmp_path / "x.mp4", pictures, codec="mpeg4", group=50)
    read_clip(path, 2, size=32)  # libraries are loaded
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_megabytes()
    video = open_video(path)
    assert sum(1 for _ in video.play()) == 360
    assert read_clip(path, size=32).frames.shape == (360, 32, 32, 3)
    assert video.read(300, 8).shape == (8, 360, 640, 3)
    assert _peak_megabytes() - before < 80


def test_a_changing_size_is_followed_while_the_picture_keeps_its_shape(tmp_path: Path) -> None:
    frames = read_video(write_changing_film(tmp_path / "a.mkv", [(64, 96), (32, 48), (128, 192), (64, 96)]))
    assert frames.shape == (4, 64, 96, 3)
    assert all(apart(frame, quadrants()) < 10 for frame in frames)
    with pytest.raises(MediaError, match="b.mkv.*changes"):
        read_video(write_changing_film(tmp_path / "b.mkv", [(64, 96), (64, 96), (64, 64), (64, 96)]))


@pytest.mark.parametrize(
    ("suffix", "audio"),
    [(".mkv", 0), (".webm", 0), (".avi", 0), (".mp4", 0), (".mov", 0), (".mkv", 3), (".mp4", 3)],
)
@pytest.mark.parametrize("part", [0.35, 0.6, 0.8, 0.95])
def test_a_film_that_was_cut_is_not_read_as_a_shorter_one(
    tmp_path: Path, suffix: str, audio: float, part: float
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), np.uint8)
    path = write_film(tmp_path / f"x{suffix}", noise, audio=audio)
    assert len(read_video(path)) == 20
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    try:
        frames = read_video(path)
    except MediaError as error:
        assert str(path) in str(error)
    else:
        assert len(frames) == 20  # only sound was lost


@pytest.mark.parametrize("part", [0.35, 0.6, 0.8])
def test_a_fragmented_film_that_was_cut_in_a_fragment_is_damaged(tmp_path: Path, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), np.uint8)
    path = write_film(tmp_path / "x.mp4", noise, group=5, movflags="frag_keyframe+empty_moov")
    assert len(read_video(path)) == 20
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(MediaError):
        read_video(path)


def test_a_film_without_a_length_of_its_own_is_surveyed(tmp_path: Path) -> None:
    class Pipe:
        """Nothing can be written into the header afterwards, as when a browser records."""

        def __init__(self, path: Path) -> None:
            self.file = path.open("wb")

        def write(self, data: bytes) -> int:
            return self.file.write(data)

    path = tmp_path / "recorded.webm"
    pipe = Pipe(path)
    with av.open(pipe, "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for frame in shades(17):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    pipe.file.close()
    with av.open(str(path)) as container:
        assert container.duration is None
    video = open_video(path)
    assert video.frames == 17 and shade_numbers(video.read(10, 4)) == [10, 11, 12, 13]


def test_sound_and_covers_are_passed_over(tmp_path: Path) -> None:
    path = write_film(tmp_path / "x.mp4", shades(10), audio=4.0)
    assert shade_numbers(read_video(path)) == list(range(10))
    path = write_film(tmp_path / "x.mkv", shades(10), audio=4.0)
    assert shade_numbers(read_video(path)) == list(range(10))


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (10, 2), (11, None), (0, 0), (3, -1)])
def test_a_window_outside_is_refused(tmp_path: Path, first: int, count: int | None) -> None:
    video = open_video(write_film(tmp_path / "x.mp4", shades(10)))
    with pytest.raises(MediaError, match="10 frames"):
        video.read(first, count)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), 1e300, "8", None.__class__, 1e-9])
def test_rates_that_make_no_sense(tmp_path: Path, fps: Any) -> None:
    path = write_film(tmp_path / "x.mp4", shades(3))
    with pytest.raises(MediaError, match="fps"):
        open_video(path, fps=fps)


def test_frames_become_squares_while_they_are_read(tmp_path: Path) -> None:
    path = write_film(tmp_path / "x.mp4", [quadrants(64, 96)] * 4, rate=12)
    clip = read_clip(path, 3, size=16)
    assert clip.frames.shape == (3, 16, 16, 3) and clip.fps == 12
    np.testing.assert_allclose(clip.frames[0, 1, 1], (220, 30, 30), atol=8)
    np.testing.assert_allclose(clip.frames[0, 14, 14], (250, 250, 250), atol=8)


def test_a_picture_that_the_decoder_makes_up_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), np.uint8)
    path = write_film(tmp_path / "x.mp4", noise, codec="mpeg4")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)
    with pytest.raises(MediaError, match="damaged"):
        read_video(path)
    assert len(open_video(path).read(0, 4)) == 4
