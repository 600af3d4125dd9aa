# SPDX-License-Identifier: Apache-2.0
"""Self-Forcing in the sizes of an entry."""

from ardiff_engine.systems.self_forcing import SYSTEM
from ardiff_engine.systems.specs.entry import Entry, sized
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    return sized(SYSTEM, entry)
