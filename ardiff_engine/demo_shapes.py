# SPDX-License-Identifier: Apache-2.0
"""The second part of the demo: the bundled model of moving shapes does what captions and arrow keys say."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ardiff_engine.data.moving_shapes import ACTIONS
from ardiff_engine.media import contact_sheet, export_video
from ardiff_engine.pipeline.steered import STEPS, SteeredPipeline

NAME = "moving-shapes"
FRAMES = 48
COLUMNS = 3
SCALE = 3


@dataclass(frozen=True, slots=True)
class Shown:
    """A video: keys and captions by the frame from which they hold."""

    caption: str
    keys: Mapping[int, str] = field(default_factory=dict)
    captions: Mapping[int, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        then = [f"from frame {frame} on {key!r} is held" for frame, key in self.keys.items()]
        then += [f"from frame {frame} on: {caption}" for frame, caption in self.captions.items()]
        return "; ".join([self.caption, *then])


VIDEOS = (
    Shown("a red circle moves right"),
    Shown("a blue square moves left"),
    Shown("a yellow triangle moves up"),
    Shown("a green circle moves left behind a purple square"),
    Shown("a purple circle moves down", keys={18: "left"}),
    Shown("a green square moves right", captions={24: "a red triangle moves down"}),
)


@dataclass(frozen=True, slots=True)
class ShapeFiles:
    """What was written: all videos beside each other, twice, and a sheet with what they were told."""

    video: Path
    animation: Path
    sheet: Path


def run(out: Path, model: str | Path = NAME, *, seed: int = 0) -> ShapeFiles:
    """Makes `VIDEOS` and prints how long that takes and where they are."""
    began = time.perf_counter()
    pipe = SteeredPipeline.from_pretrained(model)
    made = [_made(pipe, shown, seed + number) for number, shown in enumerate(VIDEOS)]
    seconds = time.perf_counter() - began
    rows = [np.concatenate(made[n : n + COLUMNS], axis=2) for n in range(0, len(made), COLUMNS)]
    together = np.concatenate(rows, axis=1)
    files = ShapeFiles(
        video=export_video(together, out / "shapes.mp4", pipe.fps, scale=SCALE),
        animation=export_video(together, out / "shapes.webp", pipe.fps, scale=SCALE),
        sheet=contact_sheet(made, [shown.label for shown in VIDEOS], out / "shapes.png"),
    )
    print(f"model {NAME}: {len(made)} x {FRAMES} frames from captions, {STEPS} steps: {seconds:.1f} s")
    print(f"captions and keys {files.sheet}")
    print(f"as a video        {files.video}")
    print(f"same, as webp     {files.animation}")
    return files


def _made(pipe: SteeredPipeline, shown: Shown, seed: int) -> NDArray[np.uint8]:
    """[FRAMES, H, W, 3]"""
    block = pipe.rhythm.block

    def held(frame: int) -> int:
        pressed = [ACTIONS.index(key) for first, key in shown.keys.items() if frame >= first]
        return pressed[-1] if pressed else 0

    images = []
    stream = pipe.stream(shown.caption, -(-FRAMES // block) * block, action=held, seed=seed)
    for frame in stream:
        images.append(frame.image.numpy())
        if frame.index + 1 in shown.captions:
            stream.set_prompt(shown.captions[frame.index + 1])
    return np.stack(images[:FRAMES])
