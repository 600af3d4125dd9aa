# SPDX-License-Identifier: Apache-2.0
"""What can be played: models that make frames for ever, and what keys do to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ardiff_engine.arguments import integer
from ardiff_engine.data.moving_shapes import ACTIONS
from ardiff_engine.errors import ConfigError
from ardiff_engine.pipeline import Pipeline
from ardiff_engine.pipeline.files import steered_folder
from ardiff_engine.pipeline.inputs import chosen_seed
from ardiff_engine.pipeline.output import VideoFrame
from ardiff_engine.pipeline.steered import STEPS, SteeredPipeline

CAPTIONS = (
    "a red circle moves right",
    "a blue square moves left",
    "a yellow triangle moves up",
    "a green circle moves down",
    "a purple square moves right",
    "a red circle moves left behind a blue square",
    "a yellow triangle moves right in front of a purple circle",
    "a green square moves up behind a red triangle",
    "a blue circle moves down in front of a yellow square",
)
NUMBERS = tuple(map(str, range(1, len(CAPTIONS) + 1)))
LAG = 5
HELD_BLOCKS = 2
"""For which a pressed key stays down: terminals do not say when it is let go, but repeat it."""


class World(Protocol):
    fps: float

    @property
    def line(self) -> str:
        """What is shown, and what keys do."""

    def frames(self) -> Iterator[VideoFrame]: ...

    def press(self, key: str) -> None: ...


class Shapes:
    """A steered model: arrows push the first shape, digits choose a caption. One of own videos has no keys to
    push with, and captions of its own."""

    def __init__(
        self,
        pipe: SteeredPipeline,
        prompt: str | None,
        steps: int,
        seed: int | None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.fps, self._steered = pipe.fps, pipe.steered
        self._captions = pipe.captions or (CAPTIONS if pipe.steered else ("",))
        self._caption = self._captions[0] if prompt is None else prompt
        self._block = pipe.rhythm.block
        self._action, self._left = 0, 0
        held = self._held if pipe.steered else None
        self._stream = pipe.stream(self._caption, action=held, steps=steps, seed=seed, size=size)

    @property
    def line(self) -> str:
        arrows = "arrows push it, " if self._steered else ""
        others = f"1-{len(self._captions)} another caption, " if len(self._captions) > 1 else ""
        return f"{self._caption}   {arrows}{others}q quits"

    def frames(self) -> Iterator[VideoFrame]:
        try:
            yield from self._stream
        finally:
            self._stream.close()

    def press(self, key: str) -> None:
        if key in ACTIONS[1:]:
            self._action, self._left = ACTIONS.index(key), HELD_BLOCKS * self._block
        elif key in NUMBERS[: len(self._captions)]:
            self._caption = self._captions[NUMBERS.index(key)]
            self._stream.set_prompt(self._caption)

    def _held(self, frame: int) -> int:
        self._left -= 1
        return self._action if self._left >= 0 else 0


class Digits:
    """A model of classes: digits choose one, a blank draws another video."""

    fps = 8.0

    def __init__(self, pipe: Pipeline, steps: int, lag: int, seed: int | None) -> None:
        self._pipe, self._steps, self._lag = pipe, steps, lag
        self._seed, self._class = chosen_seed(seed), 0
        self._stream = self._opened()

    @property
    def line(self) -> str:
        return f"class {self._class}   0-9 another one, blank another video, q quits"

    def frames(self) -> Iterator[VideoFrame]:
        while True:
            stream = self._stream
            for frame in stream:
                yield frame
                if self._stream is not stream:
                    break

    def press(self, key: str) -> None:
        if key == " ":
            self._seed = (self._seed + 1) % 2**63
        elif key in tuple("0123456789"):
            self._class = int(key)
        else:
            return
        before, self._stream = self._stream, self._opened()
        close = getattr(before, "close", None)
        if close is not None:
            close()

    def _opened(self) -> Iterator[VideoFrame]:
        return self._pipe.stream(None, self._steps, self._lag, class_id=self._class, seed=self._seed)


def open_world(
    model: str,
    *,
    prompt: str | None,
    steps: int | None,
    seed: int | None,
    device: str,
    size: tuple[int, int] | None = None,
) -> World:
    """ConfigError, CheckpointError: a model that cannot be played, or arguments that it does not take."""
    if steps is not None:
        integer("--steps", steps, low=1)
    if steered_folder(model) is not None:
        return Shapes(
            SteeredPipeline.from_pretrained(model, device=device),
            prompt,
            STEPS if steps is None else steps,
            seed,
            size,
        )
    for option, value in (("--prompt", prompt), ("--size", size)):
        if value is not None:
            raise ConfigError(
                f"{option}: {model} takes none. Leave it out, or give the folder of a steered model."
            )
    steps = 20 if steps is None else steps
    return Digits(Pipeline.from_pretrained(model, device=device), steps, min(steps, LAG), seed)
