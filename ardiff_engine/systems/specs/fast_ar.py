# SPDX-License-Identifier: Apache-2.0
"""TempCache in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.systems.fast_ar import SYSTEM, VARIANTS
from ardiff_engine.systems.specs import rolling_forcing
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    system = next(own for own in (SYSTEM, *VARIANTS) if own.name == entry["system"])
    host = rolling_forcing.from_spec(entry)
    return replace(system, plan=host.plan, solver=host.solver, num_frames=host.num_frames)
