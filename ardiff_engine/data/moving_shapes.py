# SPDX-License-Identifier: Apache-2.0
"""Moving shapes: a world with captions and actions, for text-to-video models that can be steered.

One or two coloured shapes move over a textured background, bounce off the walls and pass behind each other.
The caption says what moves where: "a red circle moves left behind a blue square". An arrow key in a frame
sends the first shape that way from this frame on; while it is held at a wall, the shape stays there.

A clip is a pure function of (settings, split, seed, index): no files, no size, any clip at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ardiff_engine.data.shape_drawing import COLORS, SHAPES, TEXTURE_DRAWS, coverage, painted, textures
from ardiff_engine.errors import DataError

FPS = 16.0
ACTIONS = ("none", "left", "right", "up", "down")
"""By number; the first one is no key."""
STEPS = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)], dtype=np.float64)
"""(x, y) of an action."""

HELD = 4
"""Frames for which a key is held, or none is."""

_MARGIN = 2.0
_PRESSED = 0.4
_STILL = 0.5
_SCENE_DRAWS = 18
_COLOR_NAMES = tuple(COLORS)


@dataclass(frozen=True, slots=True)
class Scene:
    """What a caption says. colors, shapes: of the first shape and, in scenes with two, the second: rows of
    `COLORS` and `SHAPES`. direction: action number of the first one's movement in the first frame."""

    colors: tuple[int, ...]
    shapes: tuple[int, ...]
    direction: int
    in_front: bool = False

    @property
    def caption(self) -> str:
        """Such as "a red circle moves left behind a blue square"."""
        names = [
            f"a {_COLOR_NAMES[color]} {SHAPES[shape]}"
            for color, shape in zip(self.colors, self.shapes, strict=True)
        ]
        moves = f"{names[0]} moves {ACTIONS[self.direction]}"
        if len(names) == 1:
            return moves
        return f"{moves} {'in front of' if self.in_front else 'behind'} {names[1]}"


@dataclass(frozen=True, slots=True)
class ShapeClip:
    """video uint8 [T, H, W, 3]; centres float64 [T, shapes, 2], (x, y) in pixels, where the centre of the top
    left pixel is (0, 0); actions, directions int64 [T]: the keys, and the way that the first shape goes."""

    video: NDArray[np.uint8]
    scene: Scene
    centres: NDArray[np.float64]
    actions: NDArray[np.int64]
    directions: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MovingShapes:
    """A random-access set of clips.

    Args:
        canvas: height and width of a frame in pixels.
        num_frames: frames per clip, unless a call says otherwise.
        min_radius, max_radius: of shapes, in pixels.
        min_speed, max_speed: of the first shape, in pixels per frame. A second one stands still or drifts at
            up to a fifth of `min_speed`.
        pairs: share of clips with two shapes. steered: share of clips in which keys are pressed.
        split: "held_out" and "train" share no clip. seed: of all randomness.

    DataError: sizes, speeds and shares that make no sense.
    """

    canvas: int = 64
    num_frames: int = 16
    min_radius: float = 9.0
    max_radius: float = 12.0
    min_speed: float = 2.0
    max_speed: float = 3.0
    pairs: float = 0.4
    steered: float = 0.7
    split: Literal["train", "held_out"] = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.canvas < 1:
            raise DataError(f"num_frames {self.num_frames}, canvas {self.canvas}: expected at least 1.")
        if not 1 <= self.min_radius <= self.max_radius or 4 * self.max_radius > self.canvas:
            raise DataError(
                f"radii {self.min_radius} to {self.max_radius}: expected 1 <= min <= max <= a quarter of the "
                f"canvas ({self.canvas})."
            )
        if not 0 < self.min_speed <= self.max_speed <= self.max_radius:
            raise DataError(
                f"speeds {self.min_speed} to {self.max_speed}: expected 0 < min <= max <= {self.max_radius}."
            )
        for name in ("pairs", "steered"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name}: got {getattr(self, name)}, expected a share, 0 to 1.")
        if self.split not in ("train", "held_out"):
            raise DataError(f"split: got {self.split!r}, expected 'train' or 'held_out'.")

    def clip(
        self,
        index: int,
        *,
        num_frames: int | None = None,
        first_frame: int = 0,
        actions: Sequence[int] | None = None,
    ) -> ShapeClip:
        """Clip `index`, frames first_frame .. first_frame + num_frames - 1. actions: other keys than its own,
        one for each frame from 0 on."""
        given = None if actions is None else np.asarray(actions, dtype=np.int64)[None]
        return self.batch([index], num_frames=num_frames, first_frame=first_frame, actions=given)[0]

    def batch(
        self,
        indices: Sequence[int],
        *,
        num_frames: int | None = None,
        first_frame: int = 0,
        actions: NDArray[np.int64] | None = None,
    ) -> list[ShapeClip]:
        """Several clips at once. actions: [B, first_frame + T], instead of the clips' own.

        DataError: no frame, actions of another shape, or numbers that are none.
        """
        shown = self.num_frames if num_frames is None else num_frames
        if shown < 1 or first_frame < 0:
            raise DataError(f"num_frames {shown}, first_frame {first_frame}: expected >= 1 and >= 0.")
        frames = first_frame + shown
        if actions is not None and (
            actions.shape != (len(indices), frames) or not ((actions >= 0) & (actions < len(ACTIONS))).all()
        ):
            raise DataError(
                f"actions: got {list(actions.shape)}, expected [{len(indices)}, {frames}] of numbers below "
                f"{len(ACTIONS)}."
            )
        draws = np.stack([self._uniform(index, 0, _SCENE_DRAWS + TEXTURE_DRAWS) for index in indices])
        keys = self._keys(indices, draws[:, 0], frames) if actions is None else actions
        setups = [self._setup(row) for row in draws]
        moved = [self._moved(setup, own) for setup, own in zip(setups, keys, strict=True)]
        backgrounds = textures(draws[:, _SCENE_DRAWS:], self.canvas)
        return [
            ShapeClip(
                _rendered(setup, path[first_frame:], background),
                replace(setup.scene, direction=int(headings[first_frame])),
                path[first_frame:, : len(setup.scene.shapes)],
                own[first_frame:],
                headings[first_frame:],
            )
            for setup, (path, headings), background, own in zip(setups, moved, backgrounds, keys, strict=True)
        ]

    def caption(self, index: int) -> str:
        """Of clip `index` from its first frame on."""
        return self._setup(self._uniform(index, 0, _SCENE_DRAWS)).scene.caption

    # --- private

    def _uniform(self, index: int, part: int, count: int) -> NDArray[np.float64]:
        key = np.array([self.seed % 2**64, self.split == "held_out"], dtype=np.uint64)
        counter = np.array([0, 0, part, index % 2**64], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter)).random(count)

    def _keys(self, indices: Sequence[int], steered: NDArray[np.float64], frames: int) -> NDArray[np.int64]:
        """Keys that are held for a few frames each. None at first: the caption's direction must be seen."""
        spans = -(-frames // HELD)
        draws = np.stack([self._uniform(index, 1, 2 * spans) for index in indices]).reshape(-1, spans, 2)
        pressed = (draws[..., 0] < _PRESSED) & (steered < self.steered)[:, None]
        keys = np.where(pressed, 1 + (4 * draws[..., 1]).astype(np.int64), 0)
        keys = np.repeat(keys, HELD, axis=1)[:, :frames]
        keys[:, :HELD] = 0
        return keys

    def _setup(self, draws: NDArray[np.float64]) -> _Setup:
        """The first shape starts on the side that it moves away from; a second one lies in its way."""
        (_, pair, front, towards, along, across, speed, still, drift, turn, beyond, offset) = draws[:12]
        colors = [int(len(COLORS) * draws[12]), int((len(COLORS) - 1) * draws[13])]
        colors[1] += colors[1] >= colors[0]
        direction = 1 + int(4 * towards)
        radii = self.min_radius + draws[14:16] * (self.max_radius - self.min_radius)
        low, high = radii + _MARGIN, self.canvas - 1 - radii - _MARGIN
        axis, sign = (0, 1) if direction <= 2 else (1, 0), STEPS[direction].sum()
        starts = np.empty((2, 2))
        for place, (far, side) in enumerate(((0.15 * along, 0.2 + 0.6 * across), (0.7 + 0.2 * beyond, 0.0))):
            way = far if sign > 0 else 1 - far
            starts[place, axis[0]] = low[place] + way * (high - low)[place]
            starts[place, axis[1]] = low[place] + side * (high - low)[place]
        starts[1, axis[1]] = np.clip(starts[0, axis[1]] + 12 * (offset - 0.5), low[1], high[1])
        first = self.min_speed + speed * (self.max_speed - self.min_speed)
        angle, slow = 2 * np.pi * turn, 0.0 if still < _STILL else 0.2 * self.min_speed * drift
        count = 2 if pair < self.pairs else 1
        scene = Scene(
            tuple(colors[:count]),
            tuple(int(len(SHAPES) * draw) for draw in draws[16 : 16 + count]),
            direction,
            in_front=count == 2 and front < 0.5,
        )
        velocities = np.stack([first * STEPS[direction], slow * np.array([np.cos(angle), np.sin(angle)])])
        return _Setup(scene, radii, starts, velocities, first)

    def _moved(self, setup: _Setup, keys: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Centres [T, 2, 2], and the way that the first shape then goes, as action numbers [T]."""
        low = (setup.radii + _MARGIN)[:, None]
        high = self.canvas - 1 - low
        place, velocity = setup.starts.copy(), setup.velocities.copy()
        path, headings = np.empty((len(keys), 2, 2)), np.empty(len(keys), dtype=np.int64)
        for frame, key in enumerate(keys):
            if key:
                velocity[0] = setup.speed * STEPS[key]
            if frame:
                place = place + velocity
                outside = (place < low) | (place > high)
                folded = np.where(
                    place < low, 2 * low - place, np.where(place > high, 2 * high - place, place)
                )
                if key:
                    # A held key keeps the shape at the wall.
                    folded[0], outside[0] = np.clip(place[0], low[0], high[0]), False
                place, velocity = folded, np.where(outside, -velocity, velocity)
            path[frame], headings[frame] = place, (STEPS @ velocity[0]).argmax()
        return path, headings


@dataclass(frozen=True, slots=True)
class _Setup:
    """A scene and how it begins; radii [2], starts and velocities [2, 2], speed of the first shape."""

    scene: Scene
    radii: NDArray[np.float64]
    starts: NDArray[np.float64]
    velocities: NDArray[np.float64]
    speed: float


def _rendered(
    setup: _Setup, centres: NDArray[np.float64], background: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """centres [T, 2, 2] -> [T, H, W, 3]; the shape behind is painted first."""
    scene, pictures = setup.scene, np.repeat(background[None], len(centres), axis=0)
    places = range(len(scene.shapes))
    for place in reversed(places) if scene.in_front else places:
        covers = coverage(scene.shapes[place], centres[:, place], setup.radii[place], len(background))
        pictures = painted(pictures, covers, scene.colors[place])
    return np.rint(pictures).clip(0, 255).astype(np.uint8)
