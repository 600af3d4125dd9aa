# SPDX-License-Identifier: Apache-2.0
"""Solvers: float64 coefficient tables, applied by one fused op."""

from ardiff_engine.diffusion.solvers.ddim import DDIM
from ardiff_engine.diffusion.solvers.ddim_path import ddim_rows
from ardiff_engine.diffusion.solvers.ddpm import DDPM
from ardiff_engine.diffusion.solvers.dpm_solver import DPMSolver
from ardiff_engine.diffusion.solvers.euler import Euler
from ardiff_engine.diffusion.solvers.renoise import Renoise
from ardiff_engine.diffusion.solvers.rising_euler import RisingEuler
from ardiff_engine.diffusion.solvers.solver import Solver, SpacedSteps, look_back, spaced_steps
from ardiff_engine.diffusion.solvers.table import Table
from ardiff_engine.diffusion.solvers.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "DPMSolver",
    "Euler",
    "Renoise",
    "RisingEuler",
    "Solver",
    "SpacedSteps",
    "Table",
    "UniPC",
    "ddim_rows",
    "look_back",
    "spaced_steps",
]
