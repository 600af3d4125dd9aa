# SPDX-License-Identifier: Apache-2.0
"""HiAR: all blocks take a step before any takes the next, and read earlier blocks at their own next level."""

from dataclasses import replace

from ardiff_engine.memory import Full, PerLevel
from ardiff_engine.plan import stage_major
from ardiff_engine.systems.calls import by_block
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import FOUR_STEPS

SYSTEM = System(
    name="hiar",
    title="HiAR",
    paper="2603.08703",
    repository="Jacky-hate/HiAR",
    plan=stage_major(3),
    solver=FOUR_STEPS,
    memory=PerLevel(Full()),
    num_frames=21,
    exact="Calls and latents; stage by stage, pipelined, with a first block ahead, with Euler steps.",
    left_out="Its ablation that stores estimates of clean frames is traced, not served.",
)
PIPELINED = replace(
    SYSTEM,
    name="hiar-pipelined",
    title="HiAR, pipelined",
    plan=stage_major(3, pipelined=True),
    calls_of=by_block,
)
VARIANTS = (PIPELINED,)
