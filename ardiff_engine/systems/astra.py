# SPDX-License-Identifier: Apache-2.0
"""Astra: blocks of eight after the first frame and the latest ones, under actions of a camera."""

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import Euler
from ardiff_engine.memory import Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.system import System

SYSTEM = System(
    name="astra",
    title="Astra",
    paper="",
    repository="EternalEvan/Astra",
    plan=blocks(8, first=1),
    solver=Euler(FlowSchedule(5.0), 50),
    memory=Window(27, sink=1),
    num_frames=25,
    given_frames=1,
    stores_last=False,
    exact="Nothing by numbers: no trace of its code.",
    left_out="History as fewer, larger tokens that see the new frames; here it is cached, clean, and causal. "
    "Noise on the history, of which the network is not told: that is its training.",
)
