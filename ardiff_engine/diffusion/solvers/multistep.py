# SPDX-License-Identifier: Apache-2.0
"""Coefficients of multistep solvers in data prediction, for any path x = α·x0 + σ·ε.

With λ = log(α/σ) and h = λ_{k+1} − λ_k, both families move along

    x_{k+1} = (σ_{k+1}/σ_k)·x_k − α_{k+1}·(e^{−h} − 1)·x̂0_k + terms in x̂0 of the steps before.

UniPC also corrects x_k once its x̂0 is known. The corrected state is never needed on its own: corrector and
predictor of a step are both linear, so one row holds their product. Steps to σ = 0 are the limit h → ∞.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Path:
    """alphas, sigmas: float64 [S + 1], the levels of a walk from noise to data."""

    alphas: torch.Tensor
    sigmas: torch.Tensor

    def __post_init__(self) -> None:
        assert self.alphas.shape == self.sigmas.shape and self.alphas.ndim == 1

    @property
    def lambdas(self) -> list[float]:
        return [
            math.inf if s == 0 else -math.inf if a == 0 else math.log(a) - math.log(s)
            for a, s in zip(self.alphas.tolist(), self.sigmas.tolist(), strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Weights:
    """x_{k+1} = a·x_k + Σ data[j]·x̂0_{k−j}; float64: a [S], data [S, 4]."""

    a: torch.Tensor
    data: torch.Tensor


def dpm_solver_plus_plus(path: Path, order: int) -> Weights:
    """DPM-Solver++ (Lu et al. 2022), order 1 or 2 (2M, midpoint). First and last step: order 1."""
    lambdas, ratios, alphas, steps = *_of(path), len(path.sigmas) - 1
    a, data = (torch.zeros(*size, dtype=torch.float64, device="cpu") for size in ((steps,), (steps, 4)))
    for k in range(steps):
        h = lambdas[k + 1] - lambdas[k]
        now = -alphas[k + 1] * math.expm1(-h)
        a[k], data[k, 0] = ratios[k], now
        if order == 2 and 0 < k < steps - 1:
            # D1 = (x̂0_k − x̂0_{k−1}) / r with r = h_{k−1}/h; the step before may come from pure noise, h = ∞.
            slope = 0.5 * now * h / (lambdas[k] - lambdas[k - 1])
            data[k, 0] += slope
            data[k, 1] -= slope
    return Weights(a, data)


def unipc(path: Path, order: int, bh: int = 2) -> Weights:
    """UniPC (Zhao et al. 2023) of order 1 to 3, B(h) = −h (bh 1) or e^{−h} − 1 (bh 2), with its corrector.

    The order rises from 1 with the steps behind and falls to 1 with the steps ahead, as officially.
    """
    lambdas, ratios, alphas, steps = *_of(path), len(path.sigmas) - 1
    a, data = (torch.zeros(*size, dtype=torch.float64, device="cpu") for size in ((steps,), (steps, 4)))
    for k in range(steps):
        reach = min(order, k + 1, steps - k)
        predictor = _unipc_step(lambdas, alphas, k, reach, bh, corrector=False)
        a[k] = ratios[k]
        for j, weight in enumerate(predictor):
            data[k, j] += weight
        if k == 0:
            continue
        # The corrector of x_k replaces the predictor's data terms, which lead from k − 1 to k.
        before = min(order, k, steps - k + 1)
        old = _unipc_step(lambdas, alphas, k - 1, before, bh, corrector=False)
        new = _unipc_step(lambdas, alphas, k - 1, before, bh, corrector=True)
        for j, weight in enumerate(new):
            data[k, j] += ratios[k] * weight
        for j, weight in enumerate(old):
            data[k, j + 1] -= ratios[k] * weight
    return Weights(a, data)


def _unipc_step(
    lambdas: list[float], alphas: list[float], k: int, order: int, bh: int, *, corrector: bool
) -> list[float]:
    """Weights of the data terms of the step from k to k + 1.

    Predictor: of x̂0_k, x̂0_{k−1}, … Corrector: of x̂0_{k+1}, x̂0_k, x̂0_{k−1}, …
    """
    h = lambdas[k + 1] - lambdas[k]
    phi = math.expm1(-h)
    base = -alphas[k + 1] * phi
    if math.isinf(h):
        return [0.0, base] if corrector else [base]
    nodes = [(lambdas[k - j] - lambdas[k]) / h for j in range(1, order)]
    if corrector:
        nodes.append(1.0)
    scale = -h if bh == 1 else phi
    weights = _moments(nodes, h, scale, order) if nodes else []
    if len(nodes) == 1:
        weights = [0.5]  # both orders that have one node: what the system gives for small h
    own, others = base, []
    for node, weight in zip(nodes, weights, strict=True):
        slope = -alphas[k + 1] * scale * weight / node
        own -= slope
        others.append(slope)
    return [others.pop(), own, *others] if corrector else [own, *others]


def _moments(nodes: list[float], h: float, scale: float, order: int) -> list[float]:
    """ρ with Σ_j ρ_j·r_j^{i−1} = i!·φ_{i+1}(−h)/B(h), i = 1, 2, … for as many as there are nodes."""
    right, factorial, phi = [], 1.0, math.expm1(-h) / -h - 1
    for i in range(1, len(nodes) + 1):
        right.append(phi * factorial / scale)
        factorial *= i + 1
        phi = phi / -h - 1 / factorial
    points = torch.tensor(nodes, dtype=torch.float64, device="cpu")
    system = torch.stack([points**i for i in range(len(nodes))])
    return torch.linalg.solve(system, torch.tensor(right, dtype=torch.float64, device="cpu")).tolist()


def _of(path: Path) -> tuple[list[float], list[float], list[float]]:
    """λ, σ_{k+1}/σ_k and α."""
    return path.lambdas, (path.sigmas[1:] / path.sigmas[:-1]).tolist(), path.alphas.tolist()
