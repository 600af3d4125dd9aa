# SPDX-License-Identifier: Apache-2.0
"""MMPL: key frames of a segment first, jointly, then what lies between them."""

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import UniPC
from ardiff_engine.memory import Full
from ardiff_engine.plan import sets
from ardiff_engine.systems.official.mmpl import unwritten
from ardiff_engine.systems.system import System

GROUPS = ([0], [1], [2, 3, 10, 11, 12, 19, 20], [4, 5, 6, 7, 8, 9], [13, 14, 15, 16, 17, 18])


SYSTEM = System(
    name="mmpl",
    title="MMPL",
    paper="2508.03334",
    repository="Tele-AI/MMPL",
    plan=sets(GROUPS),
    solver=UniPC(FlowSchedule(5.0), 50),
    memory=Full(joint=True),
    guidance=5.0,
    calls_of=unwritten(GROUPS[-1]),
    num_frames=21,
    given_frames=2,
    exact="Calls and latents, from a picture and from a segment.",
)
