# SPDX-License-Identifier: Apache-2.0
"""Noise sources: what the frames of a video start from, and what their steps add.

`Request.noise` takes one. All of them are standard normal for each frame alone; they differ in how frames go
together.
"""

from __future__ import annotations

from ardiff_engine.noise.antiphase import Antiphase
from ardiff_engine.noise.given import Given
from ardiff_engine.noise.rescheduled import Rescheduled, fusion_weights
from ardiff_engine.noise.source import Draws, Iid, NoiseSource
from ardiff_engine.noise.warp import Warp, blended, warp_noise
from ardiff_engine.noise.warped import Warped

__all__ = [
    "Antiphase",
    "Draws",
    "Given",
    "Iid",
    "NoiseSource",
    "Rescheduled",
    "Warp",
    "Warped",
    "blended",
    "fusion_weights",
    "warp_noise",
]
