# SPDX-License-Identifier: Apache-2.0
"""SoulX-LiveAct: blocks of eight that read what their own step wrote of earlier ones, the older of it merged.
Learned weights of the merge: `replace(system.memory, pooling=memory.Pooling(k_weights, v_weights))`."""

from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.memory import Merged, PerLevel, Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import SCHEDULE

SYSTEM = System(
    name="soulx-liveact",
    title="SoulX-LiveAct",
    paper="",
    repository="Soul-AILab/SoulX-LiveAct",
    plan=blocks(8, first=6),
    solver=Renoise(SCHEDULE, SCHEDULE.warp([1000, 750, 500])),
    memory=Merged(PerLevel(Window(10, sink=2), "same"), slots=2, taps=5),
    num_frames=22,
    stores_last=False,
    exact="Calls, places, and what each token of each slot holds; merged pages, against keys kept without "
    "their rotation in float64.",
    left_out="Its code merges V with the weights of K; the mean stands for both until weights are given.",
)
