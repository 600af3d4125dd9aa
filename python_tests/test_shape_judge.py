# SPDX-License-Identifier: Apache-2.0
"""The detector of moving shapes and what is judged by it, where the truth is known: real clips pass; frozen,
shuffled, noisy, empty and wrongly described ones fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ardiff_engine.data.moving_shapes import MovingShapes, Scene, ShapeClip
from ardiff_engine.data.shape_drawing import COLORS, SHAPES
from ardiff_engine.errors import TensorError
from ardiff_engine.evaluation import shapes as command
from ardiff_engine.evaluation.shape_detector import NOTHING, Tracks, tracks
from ardiff_engine.evaluation.shape_judge import (
    appears,
    constant,
    follows,
    moves_as_told,
    obeys,
    pressed_at,
    shows_scene,
    smooth,
)

WORLD = MovingShapes(split="held_out", steered=0.0, seed=7)


@pytest.fixture(scope="module")
def clips() -> list[ShapeClip]:
    return WORLD.batch(range(30), num_frames=24)


@pytest.fixture(scope="module")
def found(clips: list[ShapeClip]) -> list[Tracks]:
    return [tracks(clip.video) for clip in clips]


def noisy(video: np.ndarray, strength: float, dice: np.random.Generator) -> np.ndarray:
    return np.clip(video + dice.normal(0, strength, video.shape), 0, 255).astype(np.uint8)


def test_colors_shapes_and_places_are_found(clips: list[ShapeClip], found: list[Tracks]) -> None:
    for clip, own in zip(clips, found, strict=True):
        for place, (color, shape) in enumerate(zip(clip.scene.colors, clip.scene.shapes, strict=True)):
            assert own.shape_of(color) == shape
            if len(clip.scene.colors) == 1:
                error = own.centres[:, color] - clip.centres[:, place]
                # The mean pixel of a triangle lies below its middle.
                assert np.abs(error[:, 0]).max() < 0.5
                assert np.abs(error[:, 1] - (3.5 if SHAPES[shape] == "triangle" else 0)).max() < 1.1
        others = [color for color in range(len(COLORS)) if color not in clip.scene.colors]
        assert not own.seen[:, others].any()


def test_real_clips_pass_and_clips_that_fail_fail(
    clips: list[ShapeClip], found: list[Tracks], dice: np.random.Generator
) -> None:
    assert np.mean([follows(own, clip.scene) for own, clip in zip(found, clips, strict=True)]) >= 0.95
    order, few = dice.permutation(24), clips[:15]
    for spoilt in (
        lambda video: np.repeat(video[:1], 24, axis=0),
        lambda video: video[order],
        lambda video: noisy(video, 80, dice),
        lambda video: np.full_like(video, 128),
        lambda video: np.repeat(video.mean(axis=0, keepdims=True).astype(np.uint8), 24, axis=0),
    ):
        answers = [follows(tracks(spoilt(clip.video)), clip.scene) for clip in few]
        assert np.mean(answers) <= 0.1


def test_a_little_noise_changes_nothing(clips: list[ShapeClip], dice: np.random.Generator) -> None:
    found = [tracks(noisy(clip.video, 8, dice)) for clip in clips]
    assert np.mean([follows(own, clip.scene) for own, clip in zip(found, clips, strict=True)]) >= 0.95


def test_a_wrong_caption_is_noticed(clips: list[ShapeClip], found: list[Tracks]) -> None:
    for clip, own in zip(clips, found, strict=True):
        scene = clip.scene
        free = next(color for color in range(len(COLORS)) if color not in scene.colors)
        assert not shows_scene(own, replace(scene, colors=(free, *scene.colors[1:])))
        assert not shows_scene(own, replace(scene, shapes=((scene.shapes[0] + 1) % 3, *scene.shapes[1:])))
        assert not shows_scene(own, Scene((*scene.colors[:1], free), (*scene.shapes[:1], 0), scene.direction))
        assert not moves_as_told(own, replace(scene, direction=1 + scene.direction % 4))


def test_keys_are_seen_to_act() -> None:
    for index in range(12):
        for key in range(1, 5):
            clip = WORLD.clip(index, num_frames=15, actions=[0] * 12 + [key] * 3)
            moved = clip.centres[14, 0] - clip.centres[11, 0]
            found, color = tracks(clip.video), clip.scene.colors[0]
            if np.abs(moved).max() < 2 or not found.seen[[11, 14], color].all():
                continue  # at a wall, or hidden
            if len(clip.scene.colors) == 1:
                assert obeys(found, color, key, 12, 3)
            assert not obeys(found, color, 1 + key % 4, 12, 3)


def test_a_key_waits_for_a_shape_that_is_hidden() -> None:
    """At frame 12 the first shapes of clips 4 and 13 are behind the second ones."""
    moments = range(12, 37, 3)
    for index in (3, 4, 13, 14):
        clip = WORLD.clip(index, num_frames=36)
        color = clip.scene.colors[0]
        moment, key = pressed_at(tracks(clip.video), clip.scene, index, moments)
        assert (moment > 12) == (index in (4, 13))
        keys = [0] * moment + [key] * 3
        steered = tracks(WORLD.clip(index, num_frames=len(keys), actions=keys).video)
        assert obeys(steered, color, key, moment, 3)
        # One that goes on as before does not obey, wherever it is; what is never seen is no excuse.
        for still in (np.repeat(clip.video[:1], 39, axis=0), np.full((39, 64, 64, 3), 100, np.uint8)):
            found = tracks(still)
            assert pressed_at(found, clip.scene, index, moments)[0] == 12
            assert not any(obeys(found, color, key, 12, 3) for key in range(1, 5))


def test_constancy_over_a_long_clip() -> None:
    long = WORLD.batch(range(5), num_frames=200)
    found = [tracks(clip.video) for clip in long]
    assert np.mean([constant(own, clip.scene) for own, clip in zip(found, long, strict=True)]) >= 0.9
    for own, clip in zip(found, long, strict=True):
        other = replace(clip.scene, shapes=((clip.scene.shapes[0] + 1) % 3, *clip.scene.shapes[1:]))
        assert not constant(own, other)
    # One that turns grey half-way, and one that turns into another one.
    grey = long[0].video.copy()
    grey[100:] = 128
    assert not constant(tracks(grey), long[0].scene)
    turned = np.concatenate([long[0].video[:100], long[1].video[:100]])
    assert not constant(tracks(turned), long[0].scene)


def test_a_new_shape_appears(clips: list[ShapeClip]) -> None:
    first = clips[0]
    second = next(c for c in clips if c.scene.colors[0] not in first.scene.colors)
    found = tracks(np.concatenate([first.video[:12], second.video[:9]]))
    assert appears(found, second.scene, 12, 21) and not appears(found, second.scene, 0, 12)


def test_a_frozen_video_is_not_smooth_and_nothing_is_nowhere() -> None:
    empty = tracks(np.full((6, 64, 64, 3), 100, np.uint8))
    assert (empty.areas == 0).all() and (empty.shapes == NOTHING).all()
    assert empty.direction(0, 0, 5) == 0 and empty.shape_of(0) == NOTHING and not smooth(empty, 0)
    for wrong in (np.zeros((6, 64, 64), np.uint8), np.zeros((6, 64, 64, 3))):
        with pytest.raises(TensorError, match="video"):
            tracks(wrong)


@pytest.mark.slow
def test_the_command_judges_the_world_itself_as_it_should(clips: list[ShapeClip]) -> None:
    scenes = [clip.scene for clip in clips]
    true = command.real(WORLD)
    good = command.evaluate(true, scenes, 3, 120)
    still = command.evaluate(command.changed(true, "frozen", command.frozen), scenes, 3, 120)
    for measure, bar in command.BARS.items():
        assert good.share(measure)[0] >= bar
    assert good.share("action")[0] == 1
    assert still.share("prompt")[0] == still.share("action")[0] == 0
    share, low, high = good.share("prompt")
    assert low <= share <= high and "prompt" in command.report([good, still])
