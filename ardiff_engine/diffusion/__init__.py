# SPDX-License-Identifier: Apache-2.0
"""The diffusion process: noise schedules, solvers, guidance and noise keys."""

from ardiff_engine.diffusion import solvers
from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.diffusion.guidance import Branch, Past
from ardiff_engine.diffusion.noise import initial_noise, noise_keys
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.prediction import PREDICTIONS, Prediction

__all__ = [
    "PREDICTIONS",
    "Branch",
    "FlowSchedule",
    "NoiseSchedule",
    "Past",
    "Prediction",
    "initial_noise",
    "noise_keys",
    "solvers",
]
