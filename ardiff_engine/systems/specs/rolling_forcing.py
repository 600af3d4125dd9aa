# SPDX-License-Identifier: Apache-2.0
"""Rolling Forcing in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.memory import Placed, Window
from ardiff_engine.plan import rolling
from ardiff_engine.systems.rolling_forcing import SYSTEM
from ardiff_engine.systems.specs.entry import Entry, frames, renoise
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    size = entry["block"]
    return replace(
        SYSTEM,
        plan=rolling(len(entry["timesteps"]), block=size),
        solver=renoise(entry),
        memory=Placed(Window(21 - size, sink=size, joint=True, stored=21), "anchored"),
        num_frames=frames(entry),
    )
