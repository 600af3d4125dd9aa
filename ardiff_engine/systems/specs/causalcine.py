# SPDX-License-Identifier: Apache-2.0
"""CausalCine in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.memory import Placed, Routed, Window
from ardiff_engine.systems.causalcine import SYSTEM
from ardiff_engine.systems.specs.entry import Entry, sized
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    system = sized(SYSTEM, entry)
    routed = Routed(Window(int(entry["window"])), int(entry["routed"]), history=entry.get("history"))
    return replace(system, memory=Placed(routed, "window"))
