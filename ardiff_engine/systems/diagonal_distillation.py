# SPDX-License-Identifier: Apache-2.0
"""Diagonal Distillation: fewer steps from block to block; K/V of the last step, and no clean pass."""

from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.memory import Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import SCHEDULE

SYSTEM = System(
    name="diagonal-distillation",
    title="Diagonal Distillation",
    paper="",
    repository="Sphere-AI-Lab/diagdistill",
    plan=blocks(3),
    solver=(
        Renoise(SCHEDULE, [1000, 933, 733, 357]),
        Renoise(SCHEDULE, [1000, 933, 357]),
        Renoise(SCHEDULE, SCHEDULE.warp([1000, 100])),
    ),
    memory=Window(9, sink=3, clean=False),
    exact="Calls and latents.",
)
