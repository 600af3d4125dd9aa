# SPDX-License-Identifier: Apache-2.0
"""Video autoencoders: pixels to latents and back, with the state that a stream of frames needs.

They are imported when they are first used: models import `codec.protocol`, and they import models.
"""

from typing import TYPE_CHECKING

from ardiff_engine.lazy import lazily

if TYPE_CHECKING:
    from ardiff_engine.codec.taehv import TAEHV
    from ardiff_engine.codec.tiled import Tiled
    from ardiff_engine.codec.wan import WanVAE

__all__ = ["TAEHV", "Tiled", "WanVAE"]

_HOME = {
    "TAEHV": "ardiff_engine.codec.taehv",
    "Tiled": "ardiff_engine.codec.tiled",
    "WanVAE": "ardiff_engine.codec.wan",
}

__getattr__ = lazily(__name__, _HOME)
