# SPDX-License-Identifier: Apache-2.0
"""Pictures and animations of any mode, depth, orientation and timing, against Pillow's own functions."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import quadrants, shade_numbers, shades
from PIL import Image, ImageOps

from ardiff_engine.errors import MediaError
from ardiff_engine.media import as_frames, export_video, open_video, read_clip, read_video


def write_png16(path: Path, samples: np.ndarray) -> Path:
    """uint16 [H, W, C] with 1 to 4 channels: grey, grey + alpha, RGB, RGB + alpha."""
    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_orientations_are_respected(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x{suffix}"
    Image.fromarray(quadrants()).save(path, exif=exif, quality=95)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    np.testing.assert_array_equal(read_video(path)[0], expected)
    video = open_video(path)
    assert (video.frames, video.fps) == (1, None) and (video.height, video.width) == expected.shape[:2]
    np.testing.assert_array_equal(as_frames([Image.open(path)])[0], expected)
    folder = tmp_path / "folder"
    folder.mkdir()
    path.rename(folder / path.name)
    np.testing.assert_array_equal(read_video(folder)[0], expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_keep_their_brightness(tmp_path: Path, channels: int) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (16, 24, channels)).astype(np.uint16)
    samples[0, :4] = np.array([0, 128, 32767, 65535])[:, None]
    frame = read_video(write_png16(tmp_path / "x.png", samples))[0]
    colours = samples[..., : 1 if channels < 3 else 3].astype(float) / 257
    assert np.abs(frame - np.broadcast_to(colours, frame.shape)).max() <= 1


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("1", s) for s in (".png", ".gif")),
        *(("L", s) for s in (".png", ".jpg", ".gif", ".webp")),
        *(("LA", s) for s in (".png", ".webp")),
        *(("P", s) for s in (".png", ".gif")),
        *(("RGB", s) for s in (".png", ".jpg", ".webp")),
        *(("RGBA", s) for s in (".png", ".webp")),
        *(("CMYK", s) for s in (".jpg",)),
        *(("YCbCr", s) for s in (".jpg",)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    Image.fromarray(quadrants()).convert(mode).save(path)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_video(path), expected[None])


@pytest.mark.parametrize("name", ["x.mp4", "x", "x.txt", "x.gif", "x.mkv"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_what_a_file_holds_decides_and_not_its_name(tmp_path: Path, name: str, kind: str) -> None:
    Image.fromarray(quadrants()).save(tmp_path / name, kind, quality=95)
    assert np.abs(read_video(tmp_path / name)[0].astype(float) - quadrants()).mean() < 3


def animate(path: Path, durations: Sequence[int], frames: np.ndarray | None = None) -> Path:
    frames = shades(len(durations)) if frames is None else frames
    first, *rest = (Image.fromarray(frame) for frame in frames)
    options = {"format": "PNG"} if path.suffix == ".apng" else {}
    first.save(path, save_all=True, append_images=rest, duration=list(durations), loop=0, **options)
    return path


@pytest.mark.parametrize(
    ("durations", "fps", "expected"),
    [
        ([100, 300, 100], 10, [0, 1, 1, 1, 2]),
        ([50, 50, 50], 20, [0, 1, 2]),
        ([70, 110, 90, 70], 1000 / 70, [0, 1, 1, 2, 3]),  # until 0, 70, 180, 270, 340 ms
        ([40, 60, 60, 60, 40], 25, [0, 1, 1, 2, 3, 3, 4]),  # frames 0, 1, 2.5, 4, 5.5 to 6.5: no drift
        ([1000, 2000], 1, [0, 1, 1]),
        ([10, 10_000, 10], 100, [0, *[1] * 1000, 2]),
    ],
)
@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_pictures_of_animations_stand_as_long_as_the_file_says(
    tmp_path: Path, durations: Sequence[int], fps: float, expected: list[int], suffix: str
) -> None:
    clip = read_clip(animate(tmp_path / f"x{suffix}", durations))
    assert clip.fps == pytest.approx(fps)
    found = shade_numbers(clip.frames)
    assert found == expected


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_an_animation_without_times_has_one_frame_per_picture(tmp_path: Path, suffix: str) -> None:
    path = animate(tmp_path / f"x{suffix}", [0, 0, 0, 0])
    assert shade_numbers(read_video(path)) == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
@pytest.mark.parametrize("fps", [5.0, 20.0])
def test_animations_at_another_rate(tmp_path: Path, suffix: str, fps: float) -> None:
    video = open_video(animate(tmp_path / f"x{suffix}", [100] * 8), fps=fps)
    found = shade_numbers(video.read())
    assert video.fps == fps and len(found) == round(0.8 * fps)
    assert found == sorted(found) and len(set(found)) == min(8, len(found))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_windows_of_animations(tmp_path: Path, suffix: str) -> None:
    video = open_video(animate(tmp_path / f"x{suffix}", [100, 300, 100, 200, 100, 100]))
    whole = video.read()
    for first in range(len(whole)):
        np.testing.assert_array_equal(video.read(first, 3), whole[first : first + 3])


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
@pytest.mark.parametrize("lost", [1, 2, 9, 200, 900])
def test_an_animation_that_was_cut_is_refused(tmp_path: Path, suffix: str, lost: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)
    path = animate(tmp_path / f"x{suffix}", [100] * 5, noise)
    data = path.read_bytes()
    path.write_bytes(data[:-lost])
    with pytest.raises(MediaError, match="cannot be decoded"):
        read_video(path)


def test_a_picture_of_an_apng_that_is_not_part_of_it_is_not_shown(tmp_path: Path) -> None:
    frames = [Image.fromarray(frame) for frame in shades(4)]
    frames[0].save(
        tmp_path / "x.png",
        save_all=True,
        append_images=frames[1:],
        duration=[100] * 3,
        default_image=True,
    )
    assert shade_numbers(read_video(tmp_path / "x.png")) == [1, 2, 3]


@pytest.mark.parametrize("fps", [6.0, 8.0, 12.5, 24.0])
@pytest.mark.parametrize("name", ["x.webp", "x.gif", "x.mp4"])
def test_the_rate_of_our_own_files_comes_back(tmp_path: Path, name: str, fps: float) -> None:
    export_video(shades(9), tmp_path / name, fps=fps)
    clip = read_clip(tmp_path / name)
    tolerance = {"x.gif": 0.05, "x.webp": 0.01, "x.mp4": 1e-3}[name]  # ticks of 10 ms and 1 ms
    assert clip.fps == pytest.approx(fps, rel=tolerance) and len(clip.frames) == 9


def test_folders_of_jpegs_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for index in (0, 2, 10, 9):
        Image.fromarray(shades(12)[index]).save(tmp_path / f"shot {index} é².jpg", quality=95)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_text("not a picture")
    assert shade_numbers(read_video(tmp_path)) == [0, 2, 9, 10]
    assert read_clip(tmp_path).fps is None


def test_pictures_and_float_videos_are_frames() -> None:
    video = quadrants()[None].repeat(3, axis=0)
    pictures = [Image.fromarray(frame) for frame in video]
    np.testing.assert_array_equal(as_frames(pictures), video)
    np.testing.assert_array_equal(as_frames(tuple(pictures)), video)
    np.testing.assert_array_equal(as_frames(list(video)), video)
    np.testing.assert_array_equal(as_frames([torch.from_numpy(frame) for frame in video]), video)
    np.testing.assert_array_equal(as_frames(video.astype(np.float32) / 255), video)
    np.testing.assert_array_equal(as_frames(torch.from_numpy(video / 255).half()), video)
    assert np.abs(as_frames(torch.from_numpy(video / 255).bfloat16()).astype(int) - video).max() <= 1
    grey = as_frames([picture.convert("L") for picture in pictures])
    np.testing.assert_array_equal(grey[..., 0], np.asarray(pictures[0].convert("L"))[None].repeat(3, axis=0))
    np.testing.assert_array_equal(as_frames([p.convert("RGBA") for p in pictures]), video)


@pytest.mark.parametrize(
    "frames",
    [
        None,
        "clip.mp4",
        b"bytes",
        [],
        [None],
        [[1, 2], [3]],
        {"frames": 1},
        object(),
        [Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))],
        [np.zeros((4, 4, 3), np.uint8), "x"],
        torch.zeros(1, 4, 4, 3, device="meta"),
        torch.zeros(1, 4, 4, 3, dtype=torch.complex64),
        np.zeros((1, 4, 4, 3), object),
    ],
)
def test_what_is_no_video_is_a_typed_error(frames: object) -> None:
    with pytest.raises(MediaError):
        as_frames(frames)
