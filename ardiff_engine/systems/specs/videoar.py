# SPDX-License-Identifier: Apache-2.0
"""VideoAR in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.memory import Window
from ardiff_engine.systems.official.token_levels import levels
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System
from ardiff_engine.systems.videoar import SYSTEM


def from_spec(entry: Entry) -> System:
    memory = Window(int(entry["window"]), clean=False)
    return replace(SYSTEM, solver=levels(entry["scales"]), memory=memory, num_frames=entry["frames"])
