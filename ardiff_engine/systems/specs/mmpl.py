# SPDX-License-Identifier: Apache-2.0
"""MMPL in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import UniPC
from ardiff_engine.systems.mmpl import SYSTEM
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    given = {"image": 1, "segment": 2}[entry["mode"]]
    return replace(SYSTEM, solver=UniPC(FlowSchedule(5.0), entry["steps"]), given_frames=given)
