# SPDX-License-Identifier: Apache-2.0
"""ACDiT in the sizes of an entry."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.systems.acdit import SYSTEM
from ardiff_engine.systems.official.acdit import first_frame, solver
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    return replace(
        SYSTEM,
        num_frames=entry["blocks"],
        solver=solver(entry["timesteps"]),
        recorded=first_frame(entry["block_tokens"], entry["grid"] ** 2),
    )
