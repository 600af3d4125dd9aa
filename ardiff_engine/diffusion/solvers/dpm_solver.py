# SPDX-License-Identifier: Apache-2.0
"""DPM-Solver++ (Lu et al. 2022), first order or 2M, over a flow."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.diffusion.solvers.multistep import Path, dpm_solver_plus_plus
from ardiff_engine.diffusion.solvers.sigma_grids import sigma_grid
from ardiff_engine.diffusion.solvers.solver import check_order, flow_table, told_timesteps


@dataclass(frozen=True, slots=True)
class DPMSolver:
    """order: 1 or 2; the second reads one x̂0 of the step before.

    grid: see `sigma_grids`; "uniform" is Wan's, "below_one" diffusers'. commit: the timestep told for
    finished frames. Attributes: see `Solver`. ConfigError: bad steps, order, grid or prediction.
    """

    schedule: FlowSchedule
    num_inference_steps: int = 50
    order: int = 2
    prediction: str = "flow"
    grid: str = "uniform"
    commit: float = 0.0
    timesteps: torch.Tensor = field(init=False, repr=False, compare=False)
    coefficients: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_order("DPMSolver", "order", self.order, (1, 2))
        grid = sigma_grid(self.schedule, self.grid, self.num_inference_steps, whole=True)
        weights = dpm_solver_plus_plus(Path(1 - grid.sigmas, grid.sigmas), self.order)
        object.__setattr__(self, "timesteps", told_timesteps(grid.timesteps, self.commit, self.schedule))
        object.__setattr__(self, "coefficients", flow_table(grid.sigmas, self.prediction, weights))

    @property
    def num_steps(self) -> int:
        return self.num_inference_steps

    @property
    def waiting_timestep(self) -> float:
        return float(self.schedule.num_timesteps)
