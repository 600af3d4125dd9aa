# SPDX-License-Identifier: Apache-2.0
"""Memory Forcing in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.memory import Routed, Window
from ardiff_engine.systems.memory_forcing import SYSTEM
from ardiff_engine.systems.specs.entry import Entry, sized
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    memory = Routed(Window(int(entry["window"])), int(entry["routed"]), history=entry.get("history"))
    return replace(sized(SYSTEM, entry), memory=memory)
