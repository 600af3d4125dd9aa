# SPDX-License-Identifier: Apache-2.0
"""Where a token is: the frozen sin-cos table of AR-Diffusion's absolute positions, and the rates of RoPE."""

from __future__ import annotations

import torch

BASE = 10000.0


def sincos_positions(count: int, width: int) -> torch.Tensor:
    """float64 table [count, width]: row p = [sin(p w_j), cos(p w_j)], w_j = 10000^(-j / (width/2))."""
    omega = BASE ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = torch.arange(count, dtype=torch.float64)[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def rope_frequencies(head_dim: int) -> torch.Tensor:
    """float64 [head_dim/2]: 10000^(-2j / head_dim), one per interleaved pair."""
    return BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
