# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance as a linear combination of branches (Ho & Salimans 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ardiff_engine.errors import ConfigError, explain


@dataclass(frozen=True, slots=True)
class Guidance:
    """out = scale·conditional + (1 − scale)·unconditional.

    scale 1 is no guidance: one branch, half the cost. Scales above 1 push away from the unconditional output.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.scale, (int, float)) or not math.isfinite(self.scale):
            raise ConfigError(
                explain(
                    "bad guidance scale",
                    got=repr(self.scale),
                    expected="a finite number",
                    fix="1.0 turns guidance off; AR-Diffusion uses 2.0.",
                )
            )

    @property
    def num_branches(self) -> int:
        """How many conditionings of a stream the network must be run on."""
        return len(self.weights())

    def weights(self) -> tuple[float, ...]:
        """One weight per branch, the conditional branch first. They sum to 1."""
        return (1.0,) if self.scale == 1.0 else (float(self.scale), 1.0 - self.scale)
