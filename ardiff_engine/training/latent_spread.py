# SPDX-License-Identifier: Apache-2.0
"""Whether latents tell one picture from another. An encoder that has collapsed gives all pictures nearly the
same latents; stage 2 learns those easily, and its loss looks like success."""

from __future__ import annotations

import logging

from torch import Tensor

COLLAPSED = 0.05

logger = logging.getLogger(__name__)


class LatentSpread:
    """The root mean square distance of unit-norm tokens from their mean over pictures, token by token: 0 if
    all pictures have the same latents, 1 if they have nothing in common."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.pictures = 0

    def add(self, tokens: Tensor) -> None:
        """tokens: [..., K, c] of unit norm, those of one picture after another."""
        flat = tokens.detach().double().cpu().flatten(0, -3)
        self.total = self.total + flat.sum(0)
        self.pictures += len(flat)

    @property
    def value(self) -> float:
        if not isinstance(self.total, Tensor):
            return 0.0
        mean = self.total / self.pictures
        return float((1 - mean.square().sum(-1)).mean().clamp(min=0).sqrt())

    def warn(self) -> None:
        """Says so in the log if latents hardly vary."""
        if self.pictures > 1 and not self.value >= COLLAPSED:
            logger.warning(
                "latents of %d pictures differ by %.2g %% only: the autoencoder hardly tells them apart, "
                "and stage 2 can learn nothing from them, however low its loss. Train stage 1 for longer, or "
                'with initialisation = "fan_in" and no kl; its reconstructions say when it is ready.',
                self.pictures,
                100 * self.value,
            )
