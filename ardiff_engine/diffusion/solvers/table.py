# SPDX-License-Identifier: Apache-2.0
"""A solver that is its table: for schedules of published code that no formula here gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ardiff_engine.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """told: S + 1 timesteps, of each level and of finished frames. rows: [S, 9], see `Solver.coefficients`.
    waiting: told of frames that have not started.

    ConfigError: numbers of rows that do not fit.
    """

    told: Sequence[float]
    rows: torch.Tensor
    waiting: float
    prediction: str = "eps"
    timesteps: torch.Tensor = field(init=False, repr=False)
    coefficients: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.shape != (len(self.told) - 1, 9) or not len(self.rows):
            raise ConfigError(
                f"solvers.Table: rows {list(self.rows.shape)} for {len(self.told)} timesteps; expected "
                "[S, 9] and S + 1"
            )
        told = torch.tensor(list(self.told), dtype=torch.float64, device="cpu")
        object.__setattr__(self, "timesteps", told)
        object.__setattr__(self, "coefficients", self.rows.to("cpu", torch.float64))

    @property
    def num_steps(self) -> int:
        return len(self.told) - 1

    @property
    def waiting_timestep(self) -> float:
        return float(self.waiting)
