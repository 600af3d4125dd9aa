# SPDX-License-Identifier: Apache-2.0
"""Clips of video files: deterministic choice, square crops, broken files named once and skipped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media_files import shades, write_changing_film, write_film
from PIL import Image

from ardiff_engine.data.buckets import Bucket
from ardiff_engine.data.video_folder import VideoFolder, find_videos
from ardiff_engine.errors import MediaError
from ardiff_engine.media import film
from ardiff_engine.media.crop import resize_and_crop


def _gif(path: Path, frames: int, grey: int, size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [
        Image.fromarray(np.full((size[1], size[0], 3), grey + 5 * i, dtype=np.uint8)) for i in range(frames)
    ]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(4):
        _gif(tmp_path / f"sub{index % 2}" / f"v{index}.gif", 6, 60 * index)
    return tmp_path


def test_clips_are_consecutive_frames_of_one_video(folder: Path) -> None:
    source = VideoFolder(folder, [Bucket(8, 8, 3)], held_out=1, seed=1)
    clips, classes = source.clips(range(20))
    assert clips.shape == (20, 3, 3, 8, 8) and classes is None
    steps = (clips[:, 1:] - clips[:, :-1]).mean(dim=(2, 3, 4)) * 255
    assert torch.allclose(steps, torch.full_like(steps, 5.0), atol=1.0)
    assert len({round(float(value), 2) for value in clips[:, 0].mean(dim=(1, 2, 3))}) > 4


def test_a_sample_is_a_pure_function_of_its_id(folder: Path) -> None:
    a, b = (VideoFolder(folder, [Bucket(8, 8, 3)], held_out=1, seed=1) for _ in range(2))
    assert torch.equal(a.clips([3, 8])[0][1], b.clips([8])[0][0])


def test_held_out_videos_are_never_trained_on(folder: Path) -> None:
    source = VideoFolder(folder, [Bucket(8, 8, 3)], held_out=1)
    assert set(source.files) | set(source.held_out().files) == set(find_videos(folder))
    assert not set(source.files) & set(source.held_out().files)


@pytest.mark.parametrize(("videos", "kept"), [(1, 0), (2, 1), (3, 1), (6, 2)])
def test_most_videos_are_trained_on_whatever_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, videos: int, kept: int
) -> None:
    """64 of 60 were held out where nothing was said, and one was trained on."""
    for index in range(videos):
        _gif(tmp_path / f"v{index}.gif", 3, 10 * index)
    source = VideoFolder(tmp_path, [Bucket(8, 8, 3)], held_out=64)
    assert len(source.files) == videos - kept and len(source.held_out().files) == max(1, kept)
    said = "one video only" if videos == 1 else f"{kept} of {videos} videos are held out"
    assert [record.message for record in caplog.records if said in record.message] == caplog.messages


def test_broken_and_short_files_are_named_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "sub0" / "a-broken.gif").write_bytes(b"GIF89a nonsense")
    _gif(folder / "sub0" / "b-short.gif", 2, 0)
    with caplog.at_level(logging.WARNING):
        source = VideoFolder(folder, [Bucket(8, 8, 3)], held_out=1)
        clips, _ = source.clips(range(60))
    assert clips.shape[0] == 60
    for name in ("a-broken.gif", "b-short.gif"):
        assert sum(name in record.getMessage() for record in caplog.records) == 1
    assert f"2 of {len(source.files)} so far" in caplog.records[-1].getMessage()


def test_no_usable_video(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no video"):
        VideoFolder(tmp_path, [Bucket(8, 8, 3)], held_out=1)
    (tmp_path / "x.gif").write_bytes(b"")
    with pytest.raises(MediaError, match="no usable video"):
        VideoFolder(tmp_path, [Bucket(8, 8, 3)], held_out=1).clips([0])


def test_mp4_is_read(tmp_path: Path) -> None:
    from ardiff_engine.media import export_video

    export_video(np.full((5, 16, 24, 3), 128, dtype=np.uint8), tmp_path / "grey.mp4", fps=5)
    clips, _ = VideoFolder(tmp_path, [Bucket(8, 8, 4)], held_out=1).clips([0])
    assert abs(float(clips.mean()) - 0.5) < 0.05


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (9, 9), (4, 5), (64, 31)])
def test_crop_is_square_and_centred(shape: tuple[int, int]) -> None:
    out = resize_and_crop(torch.rand(2, 3, *shape), 8)
    assert out.shape == (2, 3, 8, 8) and out.min() >= 0 and out.max() <= 1
    ramp = torch.linspace(0, 1, shape[1]).expand(1, 3, shape[0], shape[1])
    assert abs(float(resize_and_crop(ramp, 8).mean()) - 0.5) < 0.02


def _levels(clips: torch.Tensor) -> list[list[int]]:
    """Which of `shades` the frames [B, T, 3, H, W] are."""
    means = clips.mean(dim=(2, 3, 4)) * 255
    return [[round((float(level) - 10) / 6) for level in clip] for clip in means]


def test_a_window_is_decoded_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.mp4", "b.mkv"):
        pictures = (shades(1)[0] + index % 40 * 6 for index in range(1200))
        write_film(tmp_path / name, pictures, rate=1, group=15, backward=0)
    source = VideoFolder(tmp_path, [Bucket(8, 8, 4)], held_out=1, seed=3)
    decoded = 0
    frames_of = film.frames_of

    def counting(*arguments: Any) -> list[Any]:
        nonlocal decoded
        frames = frames_of(*arguments)
        decoded += len(frames)
        return frames

    monkeypatch.setattr(film, "frames_of", counting)
    clips, _ = source.clips(range(10))
    # A group of pictures before the window, the window, and what the decoder's threads had under way.
    assert decoded <= 10 * (15 + 4 + 16) + 2 * 16
    for levels in _levels(clips):
        assert [(level - levels[0]) % 40 for level in levels] == [0, 1, 2, 3]
    assert len({tuple(levels) for levels in _levels(clips)}) > 5


def test_clips_come_at_the_rate_that_was_asked_for(tmp_path: Path) -> None:
    write_film(tmp_path / "fast.mp4", shades(36), rate=12)
    write_film(tmp_path / "slow.mp4", shades(12), rate=4)
    write_film(tmp_path / "z.mp4", shades(12), rate=4)
    clips, _ = VideoFolder(tmp_path, [Bucket(8, 8, 4)], held_out=1, fps=4).clips(range(20))
    steps = {tuple(np.diff(levels)) for levels in _levels(clips)}
    assert steps == {(3, 3, 3), (1, 1, 1)}


@pytest.mark.parametrize("damage", ["cut", "hole", "size"])
def test_a_damaged_film_is_named_once_and_skipped_the_same_way_every_time(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_film(tmp_path / "a.mp4", shades(20))
    write_film(tmp_path / "z.mp4", shades(20))
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), np.uint8)
    path = write_film(tmp_path / "b.mp4", noise, codec="mpeg4")
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[len(data) * 2 // 3 :]
    elif damage == "hole":
        data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)
    if damage == "size":
        path.unlink()
        write_changing_film(path.with_suffix(".mkv"), [(64, 96)] * 20 + [(96, 64)] * 20)
    with caplog.at_level(logging.WARNING):
        source = VideoFolder(tmp_path, [Bucket(8, 8, 4)], held_out=1, seed=1)
        clips, _ = source.clips(range(40))
    assert sum("b.m" in record.getMessage() for record in caplog.records) == 1
    # A sample does not depend on what was drawn before it, also where some windows of a film are whole.
    fresh = VideoFolder(tmp_path, [Bucket(8, 8, 4)], held_out=1, seed=1)
    for sample in reversed(range(40)):
        assert torch.equal(fresh.clips([sample])[0][0], clips[sample])
