# SPDX-License-Identifier: Apache-2.0
"""Video autoencoders: pixels to latents and back, with the state that a stream of frames needs."""

from ardiff_engine.codec.taehv import TAEHV
from ardiff_engine.codec.wan import WanVAE

__all__ = ["TAEHV", "WanVAE"]
