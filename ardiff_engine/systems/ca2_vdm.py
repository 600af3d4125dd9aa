# SPDX-License-Identifier: Apache-2.0
"""Ca2-VDM: blocks over a cache that all steps share, clean frames at timestep 0, places in a ring."""

from ardiff_engine.memory import Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.official.ca2_vdm import causal, in_a_ring, solver
from ardiff_engine.systems.system import System

SYSTEM = System(
    name="ca2-vdm",
    title="Ca2-VDM",
    paper="2411.16375",
    repository="Dawn-LX/CausalCache-VDM",
    plan=blocks(8, first=1),
    solver=solver(100),
    memory=Window(33),
    fps=8,
    num_frames=41,
    given_frames=1,
    calls_of=causal(True),
    recorded=in_a_ring(33),
    exact="Calls and latents; places in a ring and those that count from the window, causal in part.",
    left_out="Blocks are causal within in the trace, and see all of themselves when served. Noised prefixes.",
)
