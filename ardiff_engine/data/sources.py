# SPDX-License-Identifier: Apache-2.0
"""From the [data] table of a config to clips."""

from __future__ import annotations

from ardiff_engine.data.buckets import Bucket
from ardiff_engine.data.clips import ClipSource, DigitClips, ShapeClips
from ardiff_engine.data.config import DataConfig
from ardiff_engine.data.video_folder import VideoFolder
from ardiff_engine.errors import ConfigError, explain


def video_folder(config: DataConfig, image_size: int, seed: int, step_clips: int) -> VideoFolder:
    """step_clips: clips of a step, over all processes, which come from one bucket."""
    buckets = config.shapes_of_clips or (Bucket(image_size, image_size, config.num_frames),)
    return VideoFolder(
        config.path, buckets, config.held_out, fps=config.fps, seed=seed, step_clips=step_clips
    )


def clip_source(config: DataConfig, image_size: int, seed: int = 0, step_clips: int = 1) -> ClipSource:
    """Pixels for stage 1, or for encoding on the fly. step_clips: see `video_folder`.

    ConfigError: a source without pixels of that size.
    """
    if config.source == "videos":
        return video_folder(config, image_size, seed, step_clips)
    if config.source == "moving_shapes":
        if config.shapes.canvas != image_size:
            raise ConfigError(
                f"data.shapes.canvas: got {config.shapes.canvas}, expected {image_size}, the model's."
            )
        return ShapeClips(config.shapes, config.num_frames)
    if config.source != "moving_digits":
        raise ConfigError(
            explain(
                "data.source",
                got=repr(config.source),
                expected="a source of pixels",
                fix="Use moving_digits, moving_shapes or videos.",
            )
        )
    if config.digits.canvas != image_size:
        raise ConfigError(
            explain(
                "data.digits.canvas",
                got=config.digits.canvas,
                expected=image_size,
                fix="It must be the model's image_size.",
            )
        )
    return DigitClips(config.digits, config.num_frames)
