# SPDX-License-Identifier: Apache-2.0
"""Video autoencoders: pixels to latents and back, with the state that a stream of frames needs.

They are imported when they are first used: models import `codec.protocol`, and they import models.
"""

from typing import TYPE_CHECKING

from ardiff_engine.lazy import lazily

if TYPE_CHECKING:
    from ardiff_engine.codec.taehv import TAEHV
    from ardiff_engine.codec.wan import WanVAE

__all__ = ["TAEHV", "WanVAE"]

__getattr__ = lazily(__name__, {"TAEHV": "ardiff_engine.codec.taehv", "WanVAE": "ardiff_engine.codec.wan"})
