# SPDX-License-Identifier: Apache-2.0
"""Solvers: float64 coefficient tables, applied by one fused op."""

from ardiff_engine.diffusion.solvers.ddim import DDIM
from ardiff_engine.diffusion.solvers.ddpm import DDPM
from ardiff_engine.diffusion.solvers.solver import Solver, SpacedSteps, spaced_steps

__all__ = ["DDIM", "DDPM", "Solver", "SpacedSteps", "spaced_steps"]
