# SPDX-License-Identifier: Apache-2.0
"""CMDM in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.plan import pyramid
from ardiff_engine.systems.cmdm import SYSTEM
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    solver = DDIM(NoiseSchedule.linear(), entry["steps"], prediction="eps")
    return replace(SYSTEM, plan=pyramid(entry["uncertainty"]), solver=solver, num_frames=entry["frames"])
