# SPDX-License-Identifier: Apache-2.0
"""LongLive 2.0: blocks of eight, UniPC anew for each of them, a window of 32 frames with a sink of 8."""

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import UniPC
from ardiff_engine.memory import Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.system import System

SYSTEM = System(
    name="longlive2",
    title="LongLive 2.0",
    paper="",
    repository="NVlabs/LongLive",
    plan=blocks(8, given_within=True),
    solver=UniPC(FlowSchedule(5.0), 4),
    memory=Window(24, sink=8),
    fps=24,
    exact="Calls and latents; cuts that pin a block, places that count from the window, a given frame.",
    left_out="Caches in four bits.",
)
