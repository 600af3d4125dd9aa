# SPDX-License-Identifier: Apache-2.0
"""The distillation recipes in plain PyTorch, on one plain table of a flow: nothing of the engine's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor], Tensor]
"""x [B, F, ...] at timesteps t [B, F] -> velocity"""


def table(shift: float, total: int = 1000) -> Tensor:
    """σ of level 0, the cleanest, .. total − 1; float64, rounded to float32 as official tables are."""
    u = torch.linspace(1.0, 0.0, total + 1, dtype=torch.float32)[:-1]
    return (shift * u / (1 + (shift - 1) * u)).double().flip(0)


def of(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.reshape(*sigma.shape, *[1] * (x.ndim - sigma.ndim))


def times(sigma: Tensor) -> Tensor:
    return (sigma.float() * 1000).double()


def x0(network: Network, x: Tensor, sigma: Tensor) -> Tensor:
    return x - of(sigma, x) * network(x, times(sigma))


def guided(told: Network, null: Network, scale: float) -> Network:
    def velocity(x: Tensor, t: Tensor) -> Tensor:
        v = null(x, t)
        return v + scale * (told(x, t) - v)

    return velocity


def consistency(
    student: Network, average: Network, teacher: Network, frames: Tensor, noise: Tensor, levels: Tensor,
    rising: list[int], sigmas: Tensor,
) -> Tensor:  # fmt: skip
    """[B]; levels [B, F], of the grid `rising`."""
    lower = torch.full_like(levels, -1)
    for own in rising:
        lower[levels > own] = own
    sigma = sigmas[levels]
    after = torch.where(lower < 0, 0.0, sigmas[lower])
    x = (1 - of(sigma, frames)) * frames + of(sigma, frames) * noise
    with torch.no_grad():
        moved = x + of(after - sigma, x) * teacher(x, times(sigma))
        at = sigmas[lower.clamp(min=0)]
        target = torch.where(of(lower < 0, x), moved, x0(average, moved, at))
    return (x0(student, x, sigma) - target).square().flatten(1).mean(1)


def ode(
    student: Network, teacher: Network, noise: Tensor, levels: Tensor, walk: list[int], sigmas: Tensor
) -> Tensor:
    """[B]; walk: falling levels, all those of `levels` among them."""
    x, point = noise, torch.zeros_like(noise)
    with torch.no_grad():
        for level, after in zip(walk, [*walk[1:], None], strict=True):
            point = torch.where(of(levels == level, x), x, point)
            sigma = sigmas[torch.full_like(levels, level)]
            next_sigma = 0.0 if after is None else sigmas[after]
            x = x + of(next_sigma - sigma, x) * teacher(x, times(sigma))
    return (x0(student, point, sigmas[levels]) - x).square().flatten(1).mean(1)
