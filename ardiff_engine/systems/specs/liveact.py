# SPDX-License-Identifier: Apache-2.0
"""SoulX-LiveAct in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.systems.liveact import SYSTEM
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    """config: the number of blocks comes first; the first block has two frames fewer than the others."""
    return replace(SYSTEM, num_frames=8 * int(entry["config"][0]) - 2)
