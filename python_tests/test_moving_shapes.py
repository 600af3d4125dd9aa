# SPDX-License-Identifier: Apache-2.0
"""Moving shapes keep to the laws of their world: clips by index, walls, keys, captions, who is in front."""

from __future__ import annotations

import numpy as np
import pytest

from ardiff_engine.data.moving_shapes import ACTIONS, STEPS, MovingShapes, ShapeClip
from ardiff_engine.data.shape_drawing import COLORS, SHAPES, coverage
from ardiff_engine.errors import DataError


@pytest.fixture(scope="module")
def clips() -> list[ShapeClip]:
    return MovingShapes(seed=5).batch(range(60), num_frames=64)


def test_clips_depend_on_seed_split_and_index_only(clips: list[ShapeClip]) -> None:
    alone = MovingShapes(seed=5).clip(7, num_frames=10)
    assert np.array_equal(alone.video, clips[7].video[:10]), "a longer clip begins alike"
    assert alone.scene == clips[7].scene and np.array_equal(alone.actions, clips[7].actions[:10])
    part = MovingShapes(seed=5).clip(7, num_frames=3, first_frame=40)
    assert np.array_equal(part.video, clips[7].video[40:43])
    assert np.array_equal(part.centres, clips[7].centres[40:43])
    assert np.array_equal(part.actions, clips[7].actions[40:43])
    for other in (MovingShapes(seed=6), MovingShapes(seed=5, split="held_out")):
        assert not np.array_equal(other.clip(7, num_frames=10).video, alone.video)


def test_shapes_stay_inside_and_keep_their_speed_between_walls(clips: list[ShapeClip]) -> None:
    for clip in clips:
        assert clip.centres.min() > 9 and clip.centres.max() < 54
        step = np.diff(clip.centres[:, 0], axis=0)
        speed = np.linalg.norm(step, axis=1)
        free = clip.actions[1:] == 0
        assert speed.max() <= 3 + 1e-9
        assert (np.isclose(speed, speed.max()) | ~free).mean() > 0.8
    turned = [np.any(np.diff(np.sign(np.diff(clip.centres[:, 0], axis=0)), axis=0)) for clip in clips]
    assert np.mean(turned) > 0.9, "nearly every shape meets a wall in four seconds"


def test_a_key_sends_the_first_shape_its_way_and_leaves_the_second_alone() -> None:
    world = MovingShapes(pairs=1.0)
    for key in range(1, len(ACTIONS)):
        keys = [0] * 8 + [key] * 4
        pressed, free = (
            world.clip(3, actions=keys, num_frames=12),
            world.clip(3, actions=[0] * 12, num_frames=12),
        )
        assert np.array_equal(pressed.video[:8], free.video[:8])
        assert np.array_equal(pressed.centres[:, 1], free.centres[:, 1])
        step = np.diff(pressed.centres[7:, 0], axis=0)
        assert (step @ STEPS[key] >= 0).all() and np.allclose(
            step - (step @ STEPS[key])[:, None] * STEPS[key], 0
        )
    held = world.clip(3, actions=[0] * 4 + [1] * 60, num_frames=64).centres[:, 0, 0]
    assert (np.diff(held[40:]) == 0).all() and held[-1] == held.min(), "a held key keeps it at the wall"


def test_captions_say_what_is_seen(clips: list[ShapeClip]) -> None:
    for clip in clips:
        words = clip.scene.caption.split()
        color, shape, direction = words[1], words[2], words[4]
        moved = clip.centres[3, 0] - clip.centres[0, 0]
        assert moved @ STEPS[ACTIONS.index(direction)] > 1
        assert clip.scene.colors[0] == list(COLORS).index(color)
        assert clip.scene.shapes[0] == SHAPES.index(shape)
        if len(words) > 5:
            assert clip.scene.colors[0] != clip.scene.colors[1]
            assert ("in front of" in clip.scene.caption) == clip.scene.in_front
    assert 0.2 < np.mean([len(clip.scene.shapes) == 2 for clip in clips]) < 0.6


def test_the_nearer_shape_hides_the_other(clips: list[ShapeClip]) -> None:
    seen = 0
    for clip in clips:
        if len(clip.scene.shapes) < 2:
            continue
        apart = np.linalg.norm(clip.centres[:, 0] - clip.centres[:, 1], axis=1)
        near = int(apart.argmin())
        if apart[near] > 4:
            continue
        x, y = clip.centres[near].mean(axis=0).round().astype(int)
        front = list(COLORS.values())[clip.scene.colors[0 if clip.scene.in_front else 1]]
        assert np.abs(clip.video[near, y, x].astype(int) - front).max() <= 1
        seen += 1
    assert seen > 5


def test_areas_of_shapes() -> None:
    centre = np.array([[31.3, 30.6]])
    area = {name: coverage(kind, centre, 10.0, 64).sum() for kind, name in enumerate(SHAPES)}
    assert area["circle"] == pytest.approx(np.pi * 100, rel=0.01)
    assert area["square"] == pytest.approx((2 * 8.86) ** 2, rel=0.01)
    assert area["triangle"] == pytest.approx(3 * 3**0.5 * (20 / 3) ** 2, rel=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_frames": 0},
        {"max_radius": 17.0},
        {"min_radius": 13.0},
        {"min_speed": 0.0},
        {"min_speed": 4.0},
        {"pairs": 1.5},
        {"split": "test"},
        {"max_radius": float("nan")},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object]) -> None:
    with pytest.raises(DataError):
        MovingShapes(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("actions", [[0, 1], [0, 1, 5], [0, -1, 0]])
def test_actions_that_do_not_fit(actions: list[int]) -> None:
    with pytest.raises(DataError, match="actions"):
        MovingShapes().clip(0, num_frames=3, actions=actions)
