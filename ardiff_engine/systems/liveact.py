# SPDX-License-Identifier: Apache-2.0
"""SoulX-LiveAct: blocks of eight, three steps each with K/V of its own, and no clean pass."""

from dataclasses import replace

from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.memory import PerLevel, Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import SCHEDULE, Entry

FIRST, BLOCK = 6, 8

SYSTEM = System(
    name="soulx-liveact",
    title="SoulX-LiveAct",
    paper="",
    repository="Soul-AILab/SoulX-LiveAct",
    plan=blocks(BLOCK, first=FIRST),
    solver=Renoise(SCHEDULE, SCHEDULE.warp([1000, 750, 500])),
    memory=PerLevel(Window(BLOCK + 2, sink=2), "same"),
    num_frames=FIRST + 2 * BLOCK,
    stores_last=False,
    exact="Calls; not what they see.",
    left_out="The two slots into which five frames at a time are merged, five neighbouring tokens into one.",
)


def from_spec(entry: Entry) -> System:
    """config: the number of blocks comes first."""
    return replace(SYSTEM, num_frames=FIRST + BLOCK * (int(entry["config"][0]) - 1))
