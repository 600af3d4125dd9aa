# SPDX-License-Identifier: Apache-2.0
"""CausVid: three steps of a schedule shifted by 8; a longer video starts anew from given frames."""

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.memory import Full
from ardiff_engine.plan import blocks
from ardiff_engine.systems.system import System

SYSTEM = System(
    name="causvid",
    title="CausVid",
    paper="2412.07772",
    repository="tianweiy/CausVid",
    plan=blocks(3),
    solver=Renoise(FlowSchedule(8.0), [1000, 757, 522]),
    memory=Full(),
    num_frames=21,
    exact="Calls and latents; also after frames that overlap with an earlier video.",
)
