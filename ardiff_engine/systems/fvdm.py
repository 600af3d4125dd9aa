# SPDX-License-Identifier: Apache-2.0
"""FVDM: a timestep for every frame; frames that are given anywhere stand at timestep 0."""

from __future__ import annotations

from dataclasses import replace

import torch

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.solvers import Table, ddim_rows
from ardiff_engine.memory.windows import Windows, overlapping
from ardiff_engine.plan import blocks, parts
from ardiff_engine.systems.system import System
from ardiff_engine.systems.training_draws import Training, shared_or_not
from ardiff_engine.systems.wan_family import Entry
from ardiff_engine.systems.window_calls import given_at


def solver(steps: int) -> Table:
    """DDIM over `steps` of 1000 timesteps from 0 to 999, equally far apart."""
    stride = 999 / (steps - 1) if steps > 1 else 1.0
    told = [round(i * stride) for i in reversed(range(steps))]
    alphas = NoiseSchedule.linear(1e-4, 0.02).alphas_cumprod[torch.tensor(told)]
    rows = ddim_rows(torch.cat([alphas, torch.ones(1, dtype=torch.float64)]), "eps")
    return Table([*map(float, told), 0.0], rows, waiting=999.0)


SYSTEM = System(
    name="fvdm",
    title="FVDM",
    paper="2410.03160",
    repository="Yaofang-Liu/FVDM",
    plan=blocks(1, lag=0),
    solver=solver(50),
    memory=Windows(((0, 16),), joint=True),
    fps=8,
    num_frames=16,
    calls_of=given_at(()),
    stores_last=False,
    exact="Calls of all modes; latents where no frame is given.",
    left_out="Given frames drift in its code: each call replaces them by their estimate at timestep 0.",
)


def from_spec(entry: Entry) -> System:
    size, overlap = entry["window"], entry["condition_frames"]
    frames = size + (entry["chunks"] - 1) * (size - overlap)
    windows = overlapping(frames, size, overlap)
    return replace(
        SYSTEM,
        plan=parts(blocks(1, lag=0), [stop for _, stop in windows]),
        solver=solver(entry["steps"]),
        memory=Windows(windows, joint=True),
        num_frames=frames,
        calls_of=given_at(entry["given_places"]),
    )


def training(entry: Entry) -> Training:
    """Its probabilistic timesteps (PTSS)."""
    own = (entry["draws"], entry["batch"], entry["frames"], entry["probability"], entry["seed"])
    return Training(SYSTEM.name, lambda: shared_or_not(*own))
