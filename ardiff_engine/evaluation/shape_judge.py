# SPDX-License-Identifier: Apache-2.0
"""What a video of moving shapes shows of what was asked for. Every answer is yes or no for one video, from
the detector alone; frozen, shuffled and noisy clips fail where they should."""

from __future__ import annotations

import numpy as np

from ardiff_engine.data.moving_shapes import STEPS, Scene
from ardiff_engine.evaluation.shape_detector import NOTHING, Tracks

EARLY = 4
"""Frames in which the caption's direction must be seen."""
JUMP = 6.0
"""Pixels between two frames; the world's shapes make 3 at most, and one that is hidden partly seems to move
faster."""
WHOLE = 0.8
"""Of the area that a shape has in most frames: less of it is partly hidden, and what is left of it seems to
move otherwise than it does."""
REACH = 8.0
"""Pixels that a shape moves in a block."""
MIDDLE = 31.5
"""Of the picture, across and down."""


def shows_scene(found: Tracks, scene: Scene) -> bool:
    """The caption's colors are seen in at least half of the frames, each with its shape, and no other color
    is."""
    seen = set(np.flatnonzero(found.seen.mean(axis=0) >= 0.5))
    forms = [found.shape_of(color) for color in scene.colors]
    return seen == set(scene.colors) and forms == list(scene.shapes)


def moves_as_told(found: Tracks, scene: Scene) -> bool:
    """The first shape goes the caption's way at first, and moves smoothly."""
    color = scene.colors[0]
    return found.direction(color, 0, EARLY - 1) == scene.direction and smooth(found, color)


def follows(found: Tracks, scene: Scene) -> bool:
    """Prompt followed: shapes, colors and direction."""
    return shows_scene(found, scene) and moves_as_told(found, scene)


def smooth(found: Tracks, color: int) -> bool:
    """Nine in ten steps between frames that show the color are no jumps, and it moves at all."""
    step = np.linalg.norm(np.diff(found.centres[:, color], axis=0), axis=-1)
    step = step[~np.isnan(step)]
    return bool(len(step) and (step <= JUMP).mean() >= 0.9 and step.mean() >= 0.25)


def obeys(found: Tracks, color: int, key: int, frame: int, block: int) -> bool:
    """A key that is held from `frame` on moves the shape its way within the block that begins there."""
    return found.direction(color, max(0, frame - 1), frame + block - 1) == key


def pressed_at(found: Tracks, scene: Scene, index: int, frames: range) -> tuple[int, int]:
    """(frame, key): when and where to send the first shape so that its answer can be seen, by the video in
    which no key is pressed.

    The frame is the first of `frames` before which the shape is whole; where it never is, which is no merit,
    the first of all. The key leads away from the nearer wall, across and down in turn by `index`; of two
    shapes, the other way if only that one does not lead nearer to the second.
    """
    color = scene.colors[0]
    areas = found.areas[:, color]
    whole = found.seen[:, color] & (areas >= WHOLE * np.quantile(areas, 0.75))
    frame = next((own for own in frames if whole[own - 1]), frames[0])
    centre = found.centres[frame - 1, color]
    keys = [(1, 3)[axis] + int(not centre[axis] > MIDDLE) for axis in (index % 2, 1 - index % 2)]
    if len(scene.colors) == 2:
        second = found.centres[frame - 1, scene.colors[1]]
        gains = [np.linalg.norm(centre + REACH * STEPS[key] - second) for key in keys]
        if gains[0] < np.linalg.norm(centre - second) < gains[1]:
            return frame, keys[1]
    return frame, keys[0]


def constant(found: Tracks, scene: Scene) -> bool:
    """In nine of ten frames the first color is seen, or hidden by the second, and where its form is clear, in
    a fifth of the frames at least, it is the caption's."""
    color, shape = scene.colors[0], scene.shapes[0]
    seen, forms = found.seen[:, color], found.shapes[:, color]
    hidden = ~seen & found.seen[:, scene.colors[1]] if len(scene.colors) == 2 else ~seen & False
    clear = forms != NOTHING
    if clear.mean() < 1 / 5:
        return False
    return bool((seen | hidden).mean() >= 0.9 and (forms[clear] == shape).mean() >= 0.9)


def appears(found: Tracks, scene: Scene, first: int, last: int) -> bool:
    """The caption's first shape, in its color, is clearly seen in one of the frames first .. last - 1."""
    return bool((found.shapes[first:last, scene.colors[0]] == scene.shapes[0]).any())
