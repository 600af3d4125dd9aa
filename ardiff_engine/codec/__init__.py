# SPDX-License-Identifier: Apache-2.0
"""Codecs: pixels to latents and back, with the state that a stream of frames needs."""

from ardiff_engine.codec.protocol import Codec, Decoder
from ardiff_engine.codec.wan import WanVAE

__all__ = ["Codec", "Decoder", "WanVAE"]
