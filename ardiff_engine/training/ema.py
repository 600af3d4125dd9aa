# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of weights, with the warm-up of AR-Diffusion's trainer."""

from __future__ import annotations

import torch
from torch import nn


class Ema:
    """shadow -= (1 - d_n)(shadow - parameter), d_1 = 0, d_n = min(decay, n / (n + 9)); n counts updates from
    1.

    Unlike the official code, n is part of the saved state: a resumed run goes on with the decay that it had.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: value.detach().clone() for name, value in module.named_parameters()}

    def decay_of(self, update: int) -> float:
        return 0.0 if update == 1 else min(self.decay, update / (update + 9))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        weight = 1 - self.decay_of(self.updates)
        for name, value in module.named_parameters():
            self.shadow[name].lerp_(value, weight)

    @torch.no_grad()
    def exchange(self, module: nn.Module) -> None:
        """Swap the module's parameters with the averaged ones; a second call swaps them back."""
        for name, value in module.named_parameters():
            kept = value.clone()
            value.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)
