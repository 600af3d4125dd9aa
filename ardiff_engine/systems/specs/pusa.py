# SPDX-License-Identifier: Apache-2.0
"""PUSA V1.0 in the sizes of an entry."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.systems.pusa import system
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    return replace(system(entry["multipliers"], entry["timesteps"]))
