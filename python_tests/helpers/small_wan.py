# SPDX-License-Identifier: Apache-2.0
"""A Wan transformer of two layers with random weights, and prompts for it."""

from __future__ import annotations

import torch

from ardiff_engine.models.wan import WanConfig, WanTransformer

CONFIG = WanConfig(48, 2, 2, 64, channels=3, out_channels=3, text_dim=10, text_tokens=20)


def small_wan(config: WanConfig = CONFIG) -> WanTransformer:
    torch.manual_seed(0)
    model = WanTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.ndim == 1 else 0.7 * parameter[0].numel() ** -0.5)
    return model


def prompt(seed: int) -> torch.Tensor:
    return torch.randn(7 + seed % 10, CONFIG.text_dim, generator=torch.Generator().manual_seed(seed))
