# SPDX-License-Identifier: Apache-2.0
"""Neighbours whose starting noise points apart: more energy at high temporal frequencies (the idea of FLEX,
whose own formula is not published)."""

from __future__ import annotations

import torch

from ardiff_engine.errors import ConfigError
from ardiff_engine.noise.source import Draws, Iid


class Antiphase(Iid):
    """eps_f = (n_f - s n_(f+1)) / sqrt(1 + s^2), with n independent: standard normal, and neighbours have a
    correlation of -s / (1 + s^2), at most -1/2. Frames that are further apart are independent.

    strength: s, 0 .. 1. Any frame is drawn alone, so an endless video can be resumed anywhere.
    """

    def __init__(self, strength: float = 1.0) -> None:
        if not 0.0 <= strength <= 1.0:
            raise ConfigError(f"noise.Antiphase strength={strength!r}: give a number from 0 to 1")
        self._strength = float(strength)

    def initial(self, frame: int, own: Draws) -> torch.Tensor:
        share = self._strength
        return (own(frame) - share * own(frame + 1)) / (1.0 + share**2) ** 0.5
