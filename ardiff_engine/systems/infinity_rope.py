# SPDX-License-Identifier: Apache-2.0
"""Infinity-RoPE: a short window that is seen at places counted from its start."""

from dataclasses import replace
from itertools import accumulate

from ardiff_engine.memory import Shots, Window
from ardiff_engine.systems import self_forcing
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry, sized, window

MEMORY = Shots(Window(5, sink=1), carried=2, positions="window")

SYSTEM = replace(
    self_forcing.SYSTEM,
    name="infinity-rope",
    title="Infinity-RoPE",
    paper="2511.20649",
    repository="yesiltepe-hidir/infinity-rope",
    memory=MEMORY,
    exact="Calls and latents; flushes and hard cuts between scenes.",
)


def from_spec(entry: Entry) -> System:
    """scene_blocks: of each scene; cut: whether it ends hard."""
    *ends, _ = accumulate(entry.get("scene_blocks", [0]))
    starts = tuple(end * entry["block"] for end in ends)
    hard = tuple(start for start, cut in zip(starts, entry.get("cut", ()), strict=False) if cut)
    return replace(
        sized(SYSTEM, entry), memory=replace(MEMORY, window=window(entry), starts=starts, hard=hard)
    )
