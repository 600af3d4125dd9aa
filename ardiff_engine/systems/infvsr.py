# SPDX-License-Identifier: Apache-2.0
"""InfVSR: videos made sharp, a block after the other, in one step from what is given instead of noise."""

from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.memory import Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import SCHEDULE

SYSTEM = System(
    name="infvsr",
    title="InfVSR",
    paper="",
    repository="Kai-Liu001/InfVSR",
    plan=blocks(3),
    solver=Renoise(SCHEDULE, [399]),
    memory=Window(6, clean=False),
    on_prompt="reset",
    stores_last=False,
    exact="Its worked schedule, and the one step of x0.",
    left_out="Scenes are found by the caller, who resets. Small pictures come as `Request.latents`.",
)
