# SPDX-License-Identifier: Apache-2.0
"""FVDM: a timestep for every frame; frames that are given anywhere stand at timestep 0."""

from ardiff_engine.memory.windows import Windows
from ardiff_engine.plan import blocks
from ardiff_engine.systems.official.fvdm import solver
from ardiff_engine.systems.official.window_calls import given_at
from ardiff_engine.systems.system import System

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
