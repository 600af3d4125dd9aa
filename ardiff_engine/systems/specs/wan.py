# SPDX-License-Identifier: Apache-2.0
"""Wan 2.1 in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan import SYSTEM


def from_spec(entry: Entry) -> System:
    return replace(SYSTEM, num_frames=entry["frames"])
