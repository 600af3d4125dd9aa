# SPDX-License-Identifier: Apache-2.0
"""What a network predicts, and the linear maps from its output to x̂0 and ε̂.

With signal α and noise σ, x_t = α·x0 + σ·ε. Every parametrisation is linear in (x_t, out):

    x0:  out = x0                x̂0 = out                   ε̂ = (x_t − α·out) / σ
    eps: out = ε                 x̂0 = (x_t − σ·out) / α      ε̂ = out
    v:   out = α·ε − σ·x0        x̂0 = α·x_t − σ·out          ε̂ = σ·x_t + α·out    (needs α² + σ² = 1)
    flow: out = ε − x0           x̂0 = x_t − σ·out            ε̂ = x_t + α·out      (needs α + σ = 1)
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from ardiff_engine.errors import ConfigError

Prediction = Literal["x0", "eps", "v", "flow"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
VARIANCE_PRESERVING: tuple[str, ...] = ("x0", "eps", "v")
STRAIGHT: tuple[str, ...] = ("x0", "eps", "flow")


def check_prediction(prediction: str, known: tuple[str, ...] = PREDICTIONS) -> None:
    """Raise ConfigError unless `prediction` is one of `known`."""
    if prediction not in known:
        raise ConfigError(
            f"prediction {prediction!r}: expected what the network was trained with: {' | '.join(known)}."
        )


def x0_weights(
    signal: torch.Tensor, sigma: torch.Tensor, prediction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(p, q) with x̂0 = p·x_t + q·out, elementwise in signal and sigma."""
    check_prediction(prediction)
    if prediction == "x0":
        return torch.zeros_like(signal), torch.ones_like(signal)
    if prediction == "eps":
        return 1 / signal, -sigma / signal
    if prediction == "flow":
        return torch.ones_like(signal), -sigma
    return signal, -sigma


def eps_weights(
    signal: torch.Tensor, sigma: torch.Tensor, prediction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(p, q) with ε̂ = p·x_t + q·out, elementwise in signal and sigma."""
    check_prediction(prediction)
    if prediction == "x0":
        return 1 / sigma, -signal / sigma
    if prediction == "eps":
        return torch.zeros_like(signal), torch.ones_like(signal)
    if prediction == "flow":
        return torch.ones_like(signal), signal
    return sigma, signal


def target_weights(
    signal: torch.Tensor, sigma: torch.Tensor, prediction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(u, w) with training target = u·x0 + w·ε, elementwise in signal and sigma."""
    check_prediction(prediction)
    if prediction == "x0":
        return torch.ones_like(signal), torch.zeros_like(signal)
    if prediction == "eps":
        return torch.zeros_like(signal), torch.ones_like(signal)
    if prediction == "flow":
        return -torch.ones_like(signal), torch.ones_like(signal)
    return -sigma, signal
