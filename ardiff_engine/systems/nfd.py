# SPDX-License-Identifier: Apache-2.0
"""NFD: a frame after the other under the player's actions, made ahead as if the last one stayed
(`speculation.Foreseen`)."""

from dataclasses import replace

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import DPMSolver, Renoise
from ardiff_engine.memory import Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.system import System

FLOW = FlowSchedule(1.0)

SYSTEM = System(
    name="nfd",
    title="NFD",
    paper="2506.01380",
    repository="no public code",
    plan=blocks(1),
    solver=DPMSolver(FLOW, 18),
    memory=Window(32, back=4),
    exact="No public code; foreseen frames are, to the bit, those of actions known beforehand.",
    left_out="Noise in the history. Guessed frames are made one after the other, not in one batch.",
)
VARIANTS = (
    replace(SYSTEM, name="nfd-plus", title="NFD+", solver=Renoise(FLOW, FLOW.warp([1000, 750, 500, 250]))),
)
