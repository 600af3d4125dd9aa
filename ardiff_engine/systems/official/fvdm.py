# SPDX-License-Identifier: Apache-2.0
"""What the code of FVDM does in its own way."""

from __future__ import annotations

import torch

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.solvers import Table, ddim_rows


def solver(steps: int) -> Table:
    """DDIM over `steps` of 1000 timesteps from 0 to 999, equally far apart."""
    stride = 999 / (steps - 1) if steps > 1 else 1.0
    told = [round(i * stride) for i in reversed(range(steps))]
    alphas = NoiseSchedule.linear(1e-4, 0.02).alphas_cumprod[torch.tensor(told)]
    rows = ddim_rows(torch.cat([alphas, torch.ones(1, dtype=torch.float64)]), "eps")
    return Table([*map(float, told), 0.0], rows, waiting=999.0)
