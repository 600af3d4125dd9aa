# SPDX-License-Identifier: Apache-2.0
"""FLEX in the sizes of an entry."""

from ardiff_engine.systems.flex import SYSTEM
from ardiff_engine.systems.specs.entry import Entry, sized
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    return sized(SYSTEM, entry)
