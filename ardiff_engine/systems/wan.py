# SPDX-License-Identifier: Apache-2.0
"""Wan 2.1: all frames together, and each sees all others."""

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import UniPC
from ardiff_engine.memory import Full
from ardiff_engine.plan import pyramid
from ardiff_engine.systems.calls import by_pass
from ardiff_engine.systems.system import System

SYSTEM = System(
    name="wan",
    title="Wan 2.1",
    paper="2503.20314",
    repository="Wan-Video/Wan2.1",
    plan=pyramid(0.0),
    solver=UniPC(FlowSchedule(5.0), 50),
    takes_scheduler=True,
    memory=Full(joint=True),
    guidance=5.0,
    num_frames=21,
    exact="Latents, against the loop over whole clips.",
    calls_of=by_pass,
    stores_last=False,
)
