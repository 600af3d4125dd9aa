# SPDX-License-Identifier: Apache-2.0
"""D-AR in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.systems.d_ar import SYSTEM
from ardiff_engine.systems.official.token_levels import levels
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    return replace(SYSTEM, solver=levels(entry["groups"]))
