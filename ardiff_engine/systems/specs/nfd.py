# SPDX-License-Identifier: Apache-2.0
"""NFD in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.memory import Window
from ardiff_engine.systems.nfd import SYSTEM
from ardiff_engine.systems.specs.entry import Entry, sized
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    return replace(sized(SYSTEM, entry), memory=Window(int(entry["window"]), back=int(entry["ahead"])))
