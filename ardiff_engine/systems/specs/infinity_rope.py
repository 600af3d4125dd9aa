# SPDX-License-Identifier: Apache-2.0
"""Infinity-RoPE in the sizes of an entry."""

from dataclasses import replace
from itertools import accumulate

from ardiff_engine.systems.infinity_rope import MEMORY, SYSTEM
from ardiff_engine.systems.specs.entry import Entry, sized, window
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    """scene_blocks: of each scene; cut: whether it ends hard."""
    *ends, _ = accumulate(entry.get("scene_blocks", [0]))
    starts = tuple(end * entry["block"] for end in ends)
    hard = tuple(start for start, cut in zip(starts, entry.get("cut", ()), strict=False) if cut)
    return replace(
        sized(SYSTEM, entry), memory=replace(MEMORY, window=window(entry), starts=starts, hard=hard)
    )
