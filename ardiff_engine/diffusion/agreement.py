# SPDX-License-Identifier: Apache-2.0
"""Sequences that are entered again until they agree: Jacobi iteration of x = f(x), chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from ardiff_engine.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Iteration:
    """number: from 0. x: what it made. residual: mean (x' − x)² / mean x'². agreed: it is the last one."""

    number: int
    x: torch.Tensor
    residual: float
    agreed: bool


@dataclass(frozen=True, slots=True)
class Agreement:
    """The stop rule: a residual below `threshold`, or `most` iterations. ConfigError: not at least one."""

    threshold: float
    most: int

    def __post_init__(self) -> None:
        if self.most < 1 or self.threshold < 0:
            raise ConfigError(
                f"Agreement(threshold={self.threshold}, most={self.most}): use a threshold of 0 or more, "
                "and 1 iteration or more"
            )

    def reached(
        self, guess: torch.Tensor, enter: Callable[[torch.Tensor, int], torch.Tensor]
    ) -> Iterator[Iteration]:
        """enter: makes x' of x and the number of the iteration. The last iteration agrees."""
        x = guess
        for number in range(self.most):
            made = enter(x, number)
            residual = float((made - x).square().mean() / made.square().mean())
            agreed = residual < self.threshold or number + 1 == self.most
            yield Iteration(number, made, residual, agreed)
            if agreed:
                return
            x = made


class CausalNetwork(Protocol):
    """A network over tokens with a cache of those that it has read."""

    @property
    def length(self) -> int:
        """Tokens in the cache."""

    def read(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """tokens [B, n, C] -> mean and scale of the n tokens that follow each of them; they are in the cache
        now."""

    def forget(self, tokens: int) -> None:
        """Take the last ones out of the cache again."""


def agreed_chunk(
    network: CausalNetwork,
    z: torch.Tensor,
    before: torch.Tensor,
    agreement: Agreement,
    first: torch.Tensor | None,
) -> Iterator[Iteration]:
    """x = z·scale + mean of a chunk of tokens z [B, n, C], given the one before them [B, 1, C].

    The first iteration reads `first` [B, n, C], or z where there is none. What an iteration has put into the
    cache is taken out again, except that of the last one.
    """

    def enter(x: torch.Tensor, number: int) -> torch.Tensor:
        tokens = torch.cat([before, x[:, :-1]], 1) if number or first is None else first
        mean, scale = network.read(tokens)
        return z * scale + mean

    for iteration in agreement.reached(z, enter):
        if not iteration.agreed:
            network.forget(z.shape[1])
        yield iteration
