# SPDX-License-Identifier: Apache-2.0
"""Astra in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.memory import Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.astra import SYSTEM
from ardiff_engine.systems.specs.entry import Entry, frames
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    size, total = entry["block"], frames(entry)
    memory = Window(size + 19, sink=1)
    return replace(SYSTEM, plan=blocks(size, first=1), memory=memory, num_frames=total)
