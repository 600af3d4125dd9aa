# SPDX-License-Identifier: Apache-2.0
"""Clips of video files: deterministic choice, square crops, broken files named once and skipped."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ardiff_engine.data.video_folder import VideoFolder, find_videos
from ardiff_engine.errors import MediaError
from ardiff_engine.media.square import resize_and_crop


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
    source = VideoFolder(folder, 3, 8, held_out=1, seed=1)
    clips, classes = source.clips(range(20))
    assert clips.shape == (20, 3, 3, 8, 8) and classes is None
    steps = (clips[:, 1:] - clips[:, :-1]).mean(dim=(2, 3, 4)) * 255
    assert torch.allclose(steps, torch.full_like(steps, 5.0), atol=1.0)
    assert len({round(float(value), 2) for value in clips[:, 0].mean(dim=(1, 2, 3))}) > 4


def test_a_sample_is_a_pure_function_of_its_id(folder: Path) -> None:
    a, b = (VideoFolder(folder, 3, 8, held_out=1, seed=1) for _ in range(2))
    assert torch.equal(a.clips([3, 8])[0][1], b.clips([8])[0][0])


def test_held_out_videos_are_never_trained_on(folder: Path) -> None:
    source = VideoFolder(folder, 3, 8, held_out=1)
    assert set(source.files) | set(source.held_out().files) == set(find_videos(folder))
    assert not set(source.files) & set(source.held_out().files)


def test_broken_and_short_files_are_named_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "sub0" / "a-broken.gif").write_bytes(b"GIF89a nonsense")
    _gif(folder / "sub0" / "b-short.gif", 2, 0)
    with caplog.at_level(logging.WARNING):
        source = VideoFolder(folder, 3, 8, held_out=1)
        clips, _ = source.clips(range(60))
    assert clips.shape[0] == 60
    for name in ("a-broken.gif", "b-short.gif"):
        assert sum(name in record.getMessage() for record in caplog.records) == 1


def test_no_usable_video(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no video"):
        VideoFolder(tmp_path, 3, 8, held_out=1)
    (tmp_path / "x.gif").write_bytes(b"")
    with pytest.raises(MediaError, match="no usable video"):
        VideoFolder(tmp_path, 3, 8, held_out=1).clips([0])


def test_mp4_is_read(tmp_path: Path) -> None:
    from ardiff_engine.media import export_video

    export_video(np.full((5, 16, 24, 3), 128, dtype=np.uint8), tmp_path / "grey.mp4", fps=5)
    clips, _ = VideoFolder(tmp_path, 4, 8, held_out=1).clips([0])
    assert abs(float(clips.mean()) - 0.5) < 0.05


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (9, 9), (4, 5), (64, 31)])
def test_crop_is_square_and_centred(shape: tuple[int, int]) -> None:
    out = resize_and_crop(torch.rand(2, 3, *shape), 8)
    assert out.shape == (2, 3, 8, 8) and out.min() >= 0 and out.max() <= 1
    ramp = torch.linspace(0, 1, shape[1]).expand(1, 3, shape[0], shape[1])
    assert abs(float(resize_and_crop(ramp, 8).mean()) - 0.5) < 0.02
