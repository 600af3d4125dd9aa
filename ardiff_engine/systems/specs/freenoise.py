# SPDX-License-Identifier: Apache-2.0
"""FreeNoise in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.noise import Rescheduled
from ardiff_engine.systems.freenoise import SYSTEM
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    noise = Rescheduled(entry["window"], entry["stride"], entry["seed"])
    return replace(SYSTEM, noise=noise, num_frames=entry["frames"])
