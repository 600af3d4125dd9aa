# SPDX-License-Identifier: Apache-2.0
"""Knot Forcing in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.memory import Placed
from ardiff_engine.systems.knot_forcing import AHEAD, SYSTEM
from ardiff_engine.systems.official.knot_forcing import with_the_next
from ardiff_engine.systems.specs.entry import Entry, sized, window
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    system = replace(sized(SYSTEM, {"given_block": 1, **entry}), calls_of=with_the_next(int(entry["knot"])))
    return replace(system, memory=Placed(window(entry), AHEAD._replace(lead=int(entry["knot"]))))
