# SPDX-License-Identifier: Apache-2.0
"""Go-with-the-Flow in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.noise import Warped
from ardiff_engine.systems.go_with_the_flow import SYSTEM
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    return replace(SYSTEM, noise=Warped(entry["flow"], entry.get("fresh", 0.0)), num_frames=entry["frames"])
