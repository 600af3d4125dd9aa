# SPDX-License-Identifier: Apache-2.0
"""Causal-Forcing in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.systems.causal_forcing import SYSTEM
from ardiff_engine.systems.specs.entry import Entry, renoise, sized
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    system, first = sized(SYSTEM, entry), entry.get("first_block_timesteps")
    return system if first is None else replace(system, solver=(renoise(entry, first), renoise(entry)))
