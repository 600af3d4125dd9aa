# SPDX-License-Identifier: Apache-2.0
"""The AR-Diffusion transformer (CVPR 2025, arXiv 2503.07418)."""

from ardiff_engine.models.ar_diffusion.config import ARDiffusionConfig
from ardiff_engine.models.ar_diffusion.transformer import ARDiffusionTransformer
from ardiff_engine.models.registry import Kind, register

__all__ = ["ARDiffusionConfig", "ARDiffusionTransformer"]

register(Kind("ar_diffusion", ARDiffusionConfig, ARDiffusionTransformer))
