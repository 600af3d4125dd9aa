# SPDX-License-Identifier: Apache-2.0
"""From the [data] table of a config to clips."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ardiff_engine.data.clips import ClipSource, DigitClips, ShapeClips
from ardiff_engine.data.video_folder import VideoFolder
from ardiff_engine.errors import ConfigError, explain

if TYPE_CHECKING:
    from ardiff_engine.training.config import DataConfig


def clip_source(config: DataConfig, image_size: int, seed: int = 0) -> ClipSource:
    """Pixels for stage 1, or for encoding on the fly. Raises ConfigError where the source has no pixels of
    that size."""
    if config.source == "videos":
        return VideoFolder(
            config.path, config.num_frames, image_size, config.held_out, fps=config.fps, seed=seed
        )
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
