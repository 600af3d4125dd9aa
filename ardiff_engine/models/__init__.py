# SPDX-License-Identifier: Apache-2.0
"""Networks. They know frames, timesteps and views; nothing of streams, plans or users."""

from ardiff_engine.models.ar_diffusion import ARDiffusionConfig, ARDiffusionTransformer
from ardiff_engine.models.cell_batch import CellBatch
from ardiff_engine.models.protocol import Footprint, Tables, VideoModel
from ardiff_engine.models.spec import ConditionSpec, FrameInput, ModelSpec, Size
from ardiff_engine.models.titok import TiTok, TiTokConfig
from ardiff_engine.models.titok.latents import check_cells, from_tokens, regroup, to_tokens
from ardiff_engine.models.wan import WanConfig, WanTransformer

__all__ = [
    "ARDiffusionConfig",
    "ARDiffusionTransformer",
    "CellBatch",
    "ConditionSpec",
    "Footprint",
    "FrameInput",
    "ModelSpec",
    "Size",
    "Tables",
    "TiTok",
    "TiTokConfig",
    "VideoModel",
    "WanConfig",
    "WanTransformer",
    "check_cells",
    "from_tokens",
    "regroup",
    "to_tokens",
]
