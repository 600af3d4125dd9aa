# SPDX-License-Identifier: Apache-2.0
"""Where training data come from: moving digits, moving shapes, folders of videos, files of latents."""

from ardiff_engine.data.latent_files import LatentFiles
from ardiff_engine.data.moving_digits import DigitClip, MovingDigits
from ardiff_engine.data.moving_shapes import MovingShapes, ShapeClip
from ardiff_engine.data.video_folder import VideoFolder

__all__ = ["DigitClip", "LatentFiles", "MovingDigits", "MovingShapes", "ShapeClip", "VideoFolder"]
