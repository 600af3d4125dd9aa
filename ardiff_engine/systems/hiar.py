# SPDX-License-Identifier: Apache-2.0
"""HiAR: all blocks take a step before any takes the next, and read earlier blocks at their own next level."""

from dataclasses import replace

from ardiff_engine.diffusion.solvers import Euler
from ardiff_engine.memory import Full, PerLevel
from ardiff_engine.plan import stage_major
from ardiff_engine.systems.calls import by_block
from ardiff_engine.systems.official_calls import clean_again, estimates
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import FOUR_STEPS, SCHEDULE, Entry, frames, renoise

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


def from_spec(entry: Entry) -> System:
    variant, size = entry["variant"], entry["block"]
    base = PIPELINED if variant == "pipelined" else SYSTEM
    system = replace(
        base,
        plan=stage_major(size, pipelined=variant == "pipelined"),
        solver=renoise(entry),
        num_frames=frames(entry),
    )
    if variant == "stage_major_ode":
        return replace(system, solver=Euler(SCHEDULE, steps=entry["timesteps"]))
    if variant == "clean_context":
        return replace(system, calls_of=estimates)
    if variant == "hybrid_block0":
        return replace(
            system, plan=stage_major(size, ahead=1), memory=PerLevel(Full(), ahead=size), calls_of=clean_again
        )
    return system
