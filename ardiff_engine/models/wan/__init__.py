# SPDX-License-Identifier: Apache-2.0
"""The Wan family's transformer."""

from ardiff_engine.models.registry import Kind, register
from ardiff_engine.models.wan.config import WanConfig
from ardiff_engine.models.wan.experts import WanExperts
from ardiff_engine.models.wan.transformer import WanTransformer
from ardiff_engine.models.wan.ulysses import UlyssesWan

__all__ = ["UlyssesWan", "WanConfig", "WanExperts", "WanTransformer"]

register(Kind("wan", WanConfig, WanTransformer))
