# SPDX-License-Identifier: Apache-2.0
"""Clips are pure functions of their index, move as they say, stay on the canvas, and splits do not share
scans."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ardiff_engine.data.moving_digits import MovingDigits, split_rows
from ardiff_engine.errors import DataError
from ardiff_engine.evaluation.motion import centroids

SPLITS = ("train", "held_out")


def test_clips_depend_on_seed_split_and_index_only() -> None:
    digits = MovingDigits(seed=3)
    alone, among = digits.clip(7), digits.batch(np.arange(5, 9))
    assert np.array_equal(alone.video, among[0][2]) and np.array_equal(alone.positions, among[1][2])
    assert np.array_equal(MovingDigits(seed=3).clip(7).video, alone.video)
    for other in (MovingDigits(seed=4), MovingDigits(seed=3, split="held_out")):
        assert not np.array_equal(other.clip(7).video, alone.video)


def test_any_frame_can_be_made_alone() -> None:
    digits = MovingDigits()
    whole = digits.clip(2, num_frames=200)
    part = digits.clip(2, num_frames=3, first_frame=150)
    assert np.array_equal(whole.video[150:153], part.video)


@pytest.mark.parametrize("count", [1, 3])
def test_shapes_dtypes_and_colour(count: int) -> None:
    clip = MovingDigits(canvas=40, digits=count).clip(0, num_frames=5)
    assert clip.video.shape == (5, 40, 40, 3) and clip.video.dtype == np.uint8
    assert clip.positions.shape == (5, count, 2) and clip.labels.shape == (count,)
    assert clip.video.max() > 200 and np.median(clip.video) == 0
    assert (clip.video[..., 0] == clip.video[..., 2]).all()


def test_constant_velocity_between_bounces_and_never_outside() -> None:
    digits = MovingDigits(min_speed=2.0, max_speed=2.0)
    positions = digits.batch(np.arange(50), num_frames=100)[1][:, :, 0]
    half = (digits.digit_size - 1) / 2
    assert positions.min() >= half - 1e-9 and positions.max() <= digits.canvas - 1 - half + 1e-9
    step = np.diff(positions, axis=1)
    speed = np.linalg.norm(step, axis=-1)
    assert np.isclose(speed, 2.0).mean() > 0.7 and speed.max() <= 2.0 + 1e-9
    straight = np.isclose(step[:, 1:], step[:, :-1]).all(axis=-1)
    before, after = step[:, :-2], step[:, 2:]
    bounced = np.isclose(np.abs(after), np.abs(before)).all(axis=-1) & (before * after < 0).any(axis=-1)
    assert straight.mean() > 0.6 and bounced.mean() > 0.1


def test_brightness_follows_position_below_a_pixel() -> None:
    clip = MovingDigits(min_speed=0.3, max_speed=0.3).clip(11, num_frames=12)
    offset = centroids(clip.video) - clip.positions[:, 0]
    assert np.abs(offset - offset.mean(axis=0)).max() < 0.1


def test_splits_share_no_scan_and_cover_all_classes() -> None:
    train, held_out = (set(split_rows(split)) for split in SPLITS)
    assert not train & held_out and len(train) + len(held_out) == 1797
    for split in SPLITS:
        _, _, labels, images = MovingDigits(split=split).batch(np.arange(400), num_frames=1)
        assert set(labels.ravel()) == set(range(10))
        assert set(images.ravel()) <= (train if split == "train" else held_out)


def test_speeds_are_within_range() -> None:
    positions = MovingDigits(min_speed=1.0, max_speed=2.5).batch(np.arange(300), num_frames=2)[1][:, :, 0]
    speed = np.linalg.norm(np.diff(positions, axis=1)[:, 0], axis=-1)
    assert speed.max() <= 2.5 + 1e-9 and 1.5 < np.median(speed) < 2.0


def test_a_digit_as_large_as_the_canvas_stays_where_it_is() -> None:
    positions = MovingDigits(canvas=16, digit_size=16).clip(0).positions
    assert np.all(positions == 7.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"digit_size": 33},
        {"digit_size": 0},
        {"digits": 0},
        {"num_frames": 0},
        {"min_speed": 3.0},
        {"split": "test"},
    ],
)
def test_impossible_settings_are_typed_errors(settings: dict[str, object]) -> None:
    with pytest.raises(DataError, match="got"):
        MovingDigits(**settings)  # type: ignore[arg-type]


def test_frames_are_made_together() -> None:
    """Thousands a second: fewer calls of Python than frames."""
    digits, calls = MovingDigits(), []
    digits.clip(0)
    sys.setprofile(lambda frame, event, _: calls.append(frame) if event == "call" else None)
    try:
        digits.batch(np.arange(128))
    finally:
        sys.setprofile(None)
    assert 0 < len(calls) < 128 * 16
