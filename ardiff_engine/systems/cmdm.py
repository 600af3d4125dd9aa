# SPDX-License-Identifier: Apache-2.0
"""CMDM: motions frame by frame; the next one starts before the one before it is finished."""

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.memory import Full
from ardiff_engine.plan import pyramid
from ardiff_engine.systems.calls import by_pass
from ardiff_engine.systems.system import System

SYSTEM = System(
    name="cmdm",
    title="CMDM",
    paper="2602.22594",
    repository="no public code",
    plan=pyramid(1.0),
    solver=DDIM(NoiseSchedule.linear(), 50, prediction="eps"),
    memory=Full(),
    num_frames=49,
    calls_of=by_pass,
    exact="Nothing: no code is public. Steps, lag and length are ours.",
    left_out="Latents of motions, with a codec of their own.",
)
