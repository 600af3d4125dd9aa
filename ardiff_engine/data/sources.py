# SPDX-License-Identifier: Apache-2.0
"""From the [data] table of a config to clips."""

from __future__ import annotations

from ardiff_engine.data.clips import ClipSource, DigitClips
from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.training.config import DataConfig


def clip_source(config: DataConfig, image_size: int) -> ClipSource:
    """Pixels for stage 1, or for encoding on the fly. Raises ConfigError where the source has no pixels of that size."""
    if config.source == "moving_digits":
        if config.digits.canvas != image_size:
            raise ConfigError(
                explain("data.digits.canvas", got=config.digits.canvas, expected=image_size, fix="It must be the model's image_size.")
            )
        return DigitClips(config.digits, config.num_frames)
    raise ConfigError(explain("data.source", got=repr(config.source), expected="a source of pixels", fix="Use moving_digits or videos."))
