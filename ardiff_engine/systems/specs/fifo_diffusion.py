# SPDX-License-Identifier: Apache-2.0
"""FIFO-Diffusion in the sizes of an entry."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.systems.fifo_diffusion import system
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    sizes = (entry["frames_per_partition"], entry["partitions"], entry["new_frames"])
    return replace(system(*sizes, entry["lookahead"], entry["eta"]))
