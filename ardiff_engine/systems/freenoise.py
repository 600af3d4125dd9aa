# SPDX-License-Identifier: Apache-2.0
"""FreeNoise: long videos of a model of short ones, whose noise comes again window by window."""

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.memory import Full
from ardiff_engine.noise import Rescheduled
from ardiff_engine.plan import pyramid
from ardiff_engine.systems.calls import by_pass
from ardiff_engine.systems.system import System

SYSTEM = System(
    name="freenoise",
    title="FreeNoise",
    paper="2310.15169",
    repository="AILab-CVC/FreeNoise",
    plan=pyramid(0.0),
    solver=DDIM(NoiseSchedule.sqrt_linear(), 50, prediction="eps"),
    memory=Full(joint=True),
    noise=Rescheduled(window=16, stride=4),
    guidance=12.0,
    num_frames=64,
    calls_of=by_pass,
    stores_last=False,
    exact="Which frame's noise each frame starts from.",
    left_out="Attention over time in windows that are averaged; prompts that change. Betas were not read.",
)
