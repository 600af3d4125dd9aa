# SPDX-License-Identifier: Apache-2.0
"""Diffusion Forcing: roll-outs in chunks under a pyramid, a trapezoid, or with the noise of a chunk alike."""

from ardiff_engine.memory.windows import Windows
from ardiff_engine.plan import pyramid
from ardiff_engine.systems.official.diffusion_forcing import solver
from ardiff_engine.systems.official.window_calls import cut_to
from ardiff_engine.systems.system import System

SYSTEM = System(
    name="diffusion-forcing",
    title="Diffusion Forcing",
    paper="2407.01392",
    repository="buoyancy99/diffusion-forcing",
    plan=pyramid(1.0),
    solver=solver(1000, 100, 15, 0.0, 6.0),
    memory=Windows(((0, 18),)),
    num_frames=18,
    given_frames=2,
    calls_of=cut_to(Windows(((0, 18),))),
    stores_last=False,
    exact="Calls of all schedules; latents of DDIM.",
    left_out="Gradient guidance. Its DDPM path and its trapezoid have faults, which tests name.",
)
