# SPDX-License-Identifier: Apache-2.0
"""SDVG in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.systems.sdvg import SYSTEM
from ardiff_engine.systems.specs.entry import Entry, sized, window
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    system = sized(SYSTEM, entry)
    return replace(system, memory=replace(window(entry), back=2 * int(entry["block"])))
