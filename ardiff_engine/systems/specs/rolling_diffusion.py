# SPDX-License-Identifier: Apache-2.0
"""Rolling Diffusion in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.systems.rolling_diffusion import rolled
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    return replace(rolled(entry["window"], entry["steps"]), num_frames=entry.get("frames"))
