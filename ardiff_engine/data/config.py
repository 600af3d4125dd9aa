# SPDX-License-Identifier: Apache-2.0
"""The [data] table of a training config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ardiff_engine.data.buckets import Bucket
from ardiff_engine.data.moving_digits import MovingDigits
from ardiff_engine.data.moving_shapes import MovingShapes
from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.settings import MAX_SIZE, at_least


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What to train on.

    source: "moving_digits" (see `digits`), "moving_shapes" (see `shapes`), "videos" (a folder, `path`) or
        "latents" (a folder of .npy files, `path`).
    num_frames: frames per clip. held_out: videos, or at least so many latent files, kept apart for
        validation, but at most a third of the videos; latent files of one video stay together.
    buckets: videos for Wan transformers and their frame_vae: shapes of clips, [height, width, frames] each,
        in place of squares of `num_frames`. Each video is of the one that fits it (`data.buckets`), and all
        clips of a step are of one.
    fps: videos only: frames per second at which they are read; None for each one's own rate.
    clips: moving digits and shapes of stage 2 only: this many clips of `clip_frames` frames are encoded once,
        before training, and every training clip is a window of one of them; 0 encodes clips on the fly.
    beginnings: share of those windows that begin with their clip, as its caption says. Less than 1 of moving
        shapes and for Wan transformers that learn by "own_history" alone, which leaves the first blocks of
        the others out.
    """

    source: Literal["moving_digits", "moving_shapes", "videos", "latents"] = "moving_digits"
    path: str = ""
    num_frames: int = 16
    held_out: int = 64
    fps: float | None = None
    buckets: tuple[tuple[int, ...], ...] = ()
    clips: int = 0
    clip_frames: int = 32
    beginnings: float = 1.0
    digits: MovingDigits = field(default_factory=MovingDigits)
    shapes: MovingShapes = field(default_factory=MovingShapes)

    def __post_init__(self) -> None:
        at_least("data", self, 1, "num_frames", "held_out", "clip_frames")
        at_least("data", self, 0, "clips")
        if self.clips and not self.source.startswith("moving"):
            raise ConfigError(
                f"data.clips: got {self.clips} with source {self.source!r}, expected 0: clips are encoded "
                "once of 'moving_digits' and 'moving_shapes' alone. Leave it out."
            )
        if self.fps is not None and self.source != "videos":
            raise ConfigError(
                f"data.fps: got {self.fps} with source {self.source!r}, expected none: it is the rate at "
                "which 'videos' are read. Leave it out."
            )
        if not 0 <= self.beginnings <= 1:
            raise ConfigError(f"data.beginnings: got {self.beginnings}, expected a share, 0 to 1.")
        if self.beginnings < 1 and not (self.clips and self.source == "moving_shapes"):
            raise ConfigError(
                f"data.beginnings: got {self.beginnings} with source {self.source!r} and clips {self.clips}, "
                "expected 1: windows are drawn of 'moving_shapes' that are encoded once. Leave it out, or "
                "set data.clips."
            )
        if self.source in ("videos", "latents") and not self.path:
            raise ConfigError(
                explain(
                    "data.path", got="nothing", expected="a folder", fix=f"source {self.source!r} needs one."
                )
            )
        for bucket in self.buckets:
            if self.source != "videos" or len(bucket) != 3 or not all(1 <= n <= MAX_SIZE for n in bucket):
                raise ConfigError(
                    f"data.buckets: got {list(bucket)} with source {self.source!r}, expected [height, width, "
                    "frames], whole numbers from 1 on, and source 'videos'."
                )
        if self.clips and self.clip_frames < self.num_frames:
            raise ConfigError(
                explain(
                    "data.clip_frames",
                    got=self.clip_frames,
                    expected=f">= num_frames ({self.num_frames})",
                    fix="Make it larger.",
                )
            )

    @property
    def shapes_of_clips(self) -> tuple[Bucket, ...]:
        return tuple(Bucket(*bucket) for bucket in self.buckets)
