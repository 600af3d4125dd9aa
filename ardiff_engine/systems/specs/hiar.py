# SPDX-License-Identifier: Apache-2.0
"""HiAR in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.diffusion.solvers import Euler
from ardiff_engine.memory import Full, PerLevel
from ardiff_engine.plan import stage_major
from ardiff_engine.systems.hiar import PIPELINED, SYSTEM
from ardiff_engine.systems.official.hiar import clean_again, estimates
from ardiff_engine.systems.specs.entry import Entry, frames, renoise
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import SCHEDULE


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
