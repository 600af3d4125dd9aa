# SPDX-License-Identifier: Apache-2.0
"""DDIM between any levels of noise: its rows from a list of ᾱ, noisiest first."""

from __future__ import annotations

import torch

from ardiff_engine.diffusion.prediction import x0_weights
from ardiff_engine.diffusion.solvers.solver import coefficient_table


def ddim_rows(
    alphas: torch.Tensor, prediction: str, eta: float = 0.0, clamp: float | None = None
) -> torch.Tensor:
    """float64 [S, 9] from ᾱ [S + 1], rising: x' = √ᾱ'·x̂0 + √(1 − ᾱ' − s²)·ε̂ + s·ε with
    s = eta·√((1 − ᾱ')/(1 − ᾱ))·√(1 − ᾱ/ᾱ')."""
    now, after = alphas[:-1], alphas[1:]
    s = eta * torch.sqrt((1 - after) / (1 - now) * torch.clamp(1 - now / after, min=0))
    a = torch.sqrt(torch.clamp(1 - after - s**2, min=0)) / torch.sqrt(1 - now)
    b = torch.sqrt(after) - a * torch.sqrt(now)
    return coefficient_table(x0_weights(now.sqrt(), (1 - now).sqrt(), prediction), a, b, s, clamp=clamp)
