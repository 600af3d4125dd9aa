# SPDX-License-Identifier: Apache-2.0
"""What the code of PUSA does in its own way."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ardiff_engine.diffusion.solvers import Table
from ardiff_engine.diffusion.solvers.solver import coefficient_table


def scaled(timesteps: Sequence[float], share: float) -> Table:
    """Euler steps of the share of every sigma; the network is told whole numbers."""
    sigmas = torch.tensor([*timesteps, 0.0], dtype=torch.float64) * (share / 1000)
    steps = sigmas[1:] - sigmas[:-1]
    rows = coefficient_table((torch.ones_like(steps), steps), torch.zeros_like(steps), torch.ones_like(steps))
    told = [float(int(share * t)) for t in timesteps]
    return Table([*told, 0.0], rows, waiting=told[0], prediction="flow")
