# SPDX-License-Identifier: Apache-2.0
"""Forcing-KV in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.systems.forcing_kv import SYSTEM, memory_of
from ardiff_engine.systems.specs.entry import Entry, sized
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    return replace(sized(SYSTEM, entry), memory=memory_of(entry["static_heads"], block=int(entry["block"])))
