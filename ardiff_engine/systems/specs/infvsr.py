# SPDX-License-Identifier: Apache-2.0
"""InfVSR in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.memory import Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.infvsr import SYSTEM
from ardiff_engine.systems.specs.entry import Entry, frames
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    size = entry["block"]
    return replace(SYSTEM, plan=blocks(size), memory=Window(2 * size, clean=False), num_frames=frames(entry))
