# SPDX-License-Identifier: Apache-2.0
"""ACDiT: a block after the other; the K/V of the last one are stored in the first pass of the next."""

from ardiff_engine.memory import Full
from ardiff_engine.plan import blocks
from ardiff_engine.systems.calls import by_pass
from ardiff_engine.systems.official.acdit import solver
from ardiff_engine.systems.system import System

SYSTEM = System(
    name="acdit",
    title="ACDiT",
    paper="2412.07720",
    repository="thunlp/ACDiT",
    plan=blocks(1),
    solver=solver([round(i * 40) - 1 for i in range(25, 0, -1)]),
    memory=Full(),
    guidance=1.5,
    num_frames=4,
    calls_of=by_pass,
    stores_last=False,
    exact="Calls and latents. Frames are its blocks, which may be several frames or a part of one.",
    left_out="Its rotation, whose pairs turn by two angles: a network's business.",
)
