# SPDX-License-Identifier: Apache-2.0
"""LongLive in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.memory import Recached
from ardiff_engine.systems.longlive import SYSTEM
from ardiff_engine.systems.official.longlive import recached
from ardiff_engine.systems.specs.entry import Entry, sized, window
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    size = entry["block"]
    prompts = tuple(-(-frame // size) * size for frame in entry.get("switch_at", ()))
    system = sized(SYSTEM, entry)
    if not prompts:
        return system
    memory = Recached(window(entry), prompts, entry["global_sink"])
    return replace(system, memory=memory, calls_of=recached(prompts, memory.reach))
