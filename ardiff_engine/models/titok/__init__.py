# SPDX-License-Identifier: Apache-2.0
"""TiTok, the frame autoencoder of AR-Diffusion."""

from ardiff_engine.models.registry import Kind, register
from ardiff_engine.models.titok.autoencoder import TiTok
from ardiff_engine.models.titok.codec import TiTokCodec
from ardiff_engine.models.titok.config import TiTokConfig

__all__ = ["TiTok", "TiTokCodec", "TiTokConfig"]

register(Kind("titok", TiTokConfig, TiTok, codec=TiTokCodec))
