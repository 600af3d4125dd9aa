# SPDX-License-Identifier: Apache-2.0
"""PUSA: all frames together, each with a multiplier of the timesteps: 0 gives a frame, 0.5 holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ardiff_engine.diffusion.solvers import Table
from ardiff_engine.diffusion.solvers.solver import coefficient_table
from ardiff_engine.memory.windows import Windows
from ardiff_engine.plan import together
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import FOUR_STEPS, Entry
from ardiff_engine.systems.window_calls import given_at


def scaled(timesteps: Sequence[float], share: float) -> Table:
    """Euler steps of the share of every sigma; the network is told whole numbers."""
    sigmas = torch.tensor([*timesteps, 0.0], dtype=torch.float64) * (share / 1000)
    steps = sigmas[1:] - sigmas[:-1]
    rows = coefficient_table((torch.ones_like(steps), steps), torch.zeros_like(steps), torch.ones_like(steps))
    told = [float(int(share * t)) for t in timesteps]
    return Table([*told, 0.0], rows, waiting=told[0], prediction="flow")


def system(multipliers: Sequence[float], timesteps: Sequence[float]) -> System:
    kinds = sorted(set(multipliers))
    frames = len(multipliers)
    return System(
        name="pusa",
        title="PUSA V1.0",
        paper="2507.16116",
        repository="Yaofang-Liu/Pusa-VidGen",
        plan=together([kinds.index(own) for own in multipliers]),
        solver=tuple(scaled(timesteps, own) for own in kinds),
        memory=Windows(((0, frames),), joint=True),
        num_frames=frames,
        calls_of=given_at([f for f, own in enumerate(multipliers) if own == 0]),
        stores_last=False,
        exact="Calls and latents, with given and with loosened frames.",
        left_out="Frames given anywhere but at the start: traced, not served.",
    )


# Frames that are given come as such; the others of a text-to-video run all move in full.
SYSTEM = system([1.0] * 21, FOUR_STEPS.timesteps.tolist()[:-1])


def from_spec(entry: Entry) -> System:
    return replace(system(entry["multipliers"], entry["timesteps"]))
