# SPDX-License-Identifier: Apache-2.0
"""UniPC over a flow (Zhao et al. 2023): predictor and corrector of order 1 to 3 (see `multistep`)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.diffusion.solvers.multistep import Path, unipc
from ardiff_engine.diffusion.solvers.sigma_grids import sigma_grid
from ardiff_engine.diffusion.solvers.solver import check_order, flow_table, told_timesteps

HIGHEST_SIGMA = 1 - 1e-6  # the formulas need log(α/σ): α > 0


@dataclass(frozen=True, slots=True)
class UniPC:
    """order: 1 to 3; reads order x̂0 of steps before. bh: 1 or 2, the paper's B(h).

    grid: see `sigma_grids`; "below_one" is Wan's, "above_zero" diffusers'. commit: the timestep told for
    finished frames. Attributes: see `Solver`. ConfigError: bad steps, order, bh, grid or prediction.
    """

    schedule: FlowSchedule
    num_inference_steps: int = 50
    order: int = 2
    prediction: str = "flow"
    grid: str = "below_one"
    bh: int = 2
    commit: float = 0.0
    timesteps: torch.Tensor = field(init=False, repr=False, compare=False)
    coefficients: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_order("UniPC", "order", self.order, (1, 2, 3))
        check_order("UniPC", "bh", self.bh, (1, 2))
        grid = sigma_grid(self.schedule, self.grid, self.num_inference_steps, whole=True)
        sigmas = grid.sigmas.clamp(max=HIGHEST_SIGMA)
        weights = unipc(Path(1 - sigmas, sigmas), self.order, self.bh)
        object.__setattr__(self, "timesteps", told_timesteps(grid.timesteps, self.commit, self.schedule))
        object.__setattr__(self, "coefficients", flow_table(sigmas, self.prediction, weights))

    @property
    def num_steps(self) -> int:
        return self.num_inference_steps

    @property
    def waiting_timestep(self) -> float:
        return float(self.schedule.num_timesteps)
