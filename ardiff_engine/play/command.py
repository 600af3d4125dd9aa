# SPDX-License-Identifier: Apache-2.0
"""Shows frames at the pace of their video, or writes them to a file, and passes keys on."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from ardiff_engine.arguments import integer
from ardiff_engine.errors import ConfigError
from ardiff_engine.media import check_target, export_video
from ardiff_engine.play.keyboard import QUIT, Keys, Script, Terminal
from ardiff_engine.play.screen import CLEAR, HIDE, RESET, SHOW, drawn
from ardiff_engine.play.worlds import World, open_world

MOST_FRAMES = 1 << 20
SCALE = 4
"""Of pictures in a file."""


def play(options: argparse.Namespace) -> int:
    if options.frames is not None:
        integer("--frames", options.frames, low=1, high=MOST_FRAMES)
    shown = options.out is None
    if shown and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("play: this is no terminal. Give --frames N --out FILE to write a video instead.")
    if not shown and options.frames is None:
        raise ConfigError("--out: got no --frames, and a file has an end. Add --frames N.")
    if not shown:
        check_target(options.out, 1.0, scale=SCALE)
    script = None if options.keys is None else Script(options.keys)
    began = time.perf_counter()
    world = open_world(
        options.model,
        prompt=options.prompt,
        steps=options.steps,
        seed=options.seed,
        device=options.device,
        size=options.size,
    )
    loaded = time.perf_counter()
    seconds: list[float] = []
    if shown:
        # Ctrl-C is a normal end, as q is.
        with Terminal() as terminal, _screen(), suppress(KeyboardInterrupt):
            _show(world, script or terminal, options.frames, seconds)
    else:
        seconds = _write(world, script or Script(""), options.frames, options.out)
    if len(seconds) > 1:
        rate = (len(seconds) - 1) / (seconds[-1] - seconds[0])
        print(
            f"{len(seconds)} frames, {rate:.1f} a second (the video has {world.fps:.0f}); the first after "
            f"{seconds[0]:.2f} s, {loaded - began:.1f} s to load"
        )
    return 0


def _show(world: World, keys: Keys, most: int | None, seconds: list[float]) -> None:
    """Notes when each frame was there."""
    began, due = time.perf_counter(), 0.0
    for number, frame in enumerate(world.frames()):
        now = time.perf_counter() - began
        seconds.append(now)
        # Frames come in blocks; one that is late moves all after it.
        due = max(due, now)
        time.sleep(due - now)
        due += 1 / world.fps
        columns, rows = shutil.get_terminal_size()
        sys.stdout.write(drawn(np.asarray(frame.image), columns, rows, world.line))
        sys.stdout.flush()
        if _passed_on(world, keys, number) or number + 1 == most:
            break


def _write(world: World, keys: Keys, most: int, out: str) -> list[float]:
    began, images, seconds = time.perf_counter(), [], list[float]()
    for number, frame in enumerate(world.frames()):
        seconds.append(time.perf_counter() - began)
        images.append(np.asarray(frame.image))
        if _passed_on(world, keys, number) or number + 1 == most:
            break
    export_video(np.stack(images), out, world.fps, scale=SCALE)
    return seconds


def _passed_on(world: World, keys: Keys, frame: int) -> bool:
    """Whether the user quits."""
    for key in keys.pressed(frame):
        if key in QUIT:
            return True
        world.press(key)
    return False


@contextmanager
def _screen() -> Iterator[None]:
    """Cleared, without a cursor."""
    sys.stdout.write(CLEAR + HIDE)
    try:
        yield
    finally:
        sys.stdout.write(f"{RESET}{SHOW}\r\n")
        sys.stdout.flush()
