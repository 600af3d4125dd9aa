# SPDX-License-Identifier: Apache-2.0
"""ASD with first-frame enhancement in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.systems.asd import SYSTEM
from ardiff_engine.systems.specs import causal_forcing
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import FOUR_STEPS


def from_spec(entry: Entry) -> System:
    made = causal_forcing.from_spec({"first_block_timesteps": FOUR_STEPS.steps} | dict(entry))
    return replace(SYSTEM, plan=made.plan, solver=made.solver, memory=made.memory, num_frames=made.num_frames)
