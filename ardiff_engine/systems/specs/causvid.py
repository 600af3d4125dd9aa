# SPDX-License-Identifier: Apache-2.0
"""CausVid in the sizes of an entry."""

from ardiff_engine.systems.causvid import SYSTEM
from ardiff_engine.systems.specs.entry import Entry, sized
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    given = entry["overlap"]
    return sized(SYSTEM, {**entry, "new_frames": entry["frames"] - given, "given_frames": given})
