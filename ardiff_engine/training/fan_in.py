# SPDX-License-Identifier: Apache-2.0
"""Initial weights with which a narrow `TiTok` tells pictures apart from the first step on.

A picture reaches the latents, and they reach the pixels, through attention alone. Where all logits are
about equal, each of the two is a mean over all places: pictures then begin with nearly the same latents,
noise on them hides what little differs, and the decoder learns the mean picture. So attention begins as a
choice of few places, places are as large as what stands at them, and patches are told by how they differ
from grey.
"""

from __future__ import annotations

import torch
from torch import nn

from ardiff_engine.models import TiTok
from ardiff_engine.models.titok.blocks import PackedAttention

CHOICE = 2.0
"""Standard deviation of a query's and a key's numbers: that of the logits is its square."""
CONTRAST = 3.0
"""Pixels differ from grey by about a third."""


@torch.no_grad()
def initialise_by_fan_in(model: TiTok) -> None:
    """Weights of linear and convolutional layers ~ N(0, 1 / fan_in), but CHOICE² / fan_in for queries and
    keys and CONTRAST² / fan_in for patches, with a bias by which grey, 0.5, becomes 0; tables of places
    ~ N(0, 1)."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, PackedAttention):
            width = module.in_proj_weight.shape[1]
            nn.init.normal_(module.in_proj_weight[: 2 * width], std=CHOICE * width**-0.5)
    for name, table in model.named_parameters():
        if name.endswith("positional_embedding"):
            nn.init.normal_(table)
    patches = model.encoder.patch_embed
    patches.weight.mul_(CONTRAST)
    assert patches.bias is not None
    patches.bias.copy_(-0.5 * patches.weight.flatten(1).sum(1))
