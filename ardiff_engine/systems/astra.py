# SPDX-License-Identifier: Apache-2.0
"""Astra: blocks of eight after the first frame and the latest ones, under actions of a camera."""

from dataclasses import replace

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import Euler
from ardiff_engine.memory import Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry, frames

BLOCK, HISTORY = 8, 20

SYSTEM = System(
    name="astra",
    title="Astra",
    paper="",
    repository="EternalEvan/Astra",
    plan=blocks(BLOCK, first=1),
    solver=Euler(FlowSchedule(5.0), 50),
    memory=Window(BLOCK + HISTORY - 1, sink=1),
    num_frames=25,
    given_frames=1,
    stores_last=False,
    exact="Nothing by numbers: no trace of its code.",
    left_out="History as fewer, larger tokens that see the new frames; here it is cached, clean, and causal. "
    "Noise on the history, of which the network is not told: that is its training.",
)


def from_spec(entry: Entry) -> System:
    size, total = entry["block"], frames(entry)
    memory = Window(size + HISTORY - 1, sink=1)
    return replace(SYSTEM, plan=blocks(size, first=1), memory=memory, num_frames=total)
