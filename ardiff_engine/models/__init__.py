# SPDX-License-Identifier: Apache-2.0
"""Networks. They know frames, timesteps and views; nothing of streams, plans or users."""

from ardiff_engine.models.ar_diffusion import ARDiffusionTransformer
from ardiff_engine.models.ar_diffusion_config import ARDiffusionConfig, ModelSpec
from ardiff_engine.models.cell_batch import CellBatch
from ardiff_engine.models.latents import check_cells, from_tokens, regroup, to_tokens
from ardiff_engine.models.titok import TiTok
from ardiff_engine.models.titok_config import TiTokConfig

__all__ = [
    "ARDiffusionConfig",
    "ARDiffusionTransformer",
    "CellBatch",
    "ModelSpec",
    "TiTok",
    "TiTokConfig",
    "check_cells",
    "from_tokens",
    "regroup",
    "to_tokens",
]
