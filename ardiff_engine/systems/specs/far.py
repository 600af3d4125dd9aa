# SPDX-License-Identifier: Apache-2.0
"""FAR in the sizes of an entry."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.systems.far import SYSTEM
from ardiff_engine.systems.official.far import encoded_again, solver, twice_as_clean
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    given, window = entry["context_frames"], entry["window"]
    system = replace(
        SYSTEM, solver=solver(entry["steps"]), num_frames=given + entry["new_frames"], given_frames=given
    )
    if not entry["long_context"]:
        return system
    return replace(system, calls_of=encoded_again(window), recorded=twice_as_clean(window))
