# SPDX-License-Identifier: Apache-2.0
"""Infinity-RoPE: a short window that is seen at places counted from its start."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from ardiff_engine.memory import Shots, Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.self_forcing import SYSTEM as SELF_FORCING
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry, frames, renoise

MEMORY = Shots(Window(5, sink=1), carried=2, positions="window")

SYSTEM = replace(
    SELF_FORCING,
    name="infinity-rope",
    title="Infinity-RoPE",
    paper="2511.20649",
    repository="yesiltepe-hidir/infinity-rope",
    memory=MEMORY,
)


def from_spec(entry: Entry) -> System:
    """scene_blocks: of each scene; cut: whether it ends hard."""
    *ends, _ = accumulate(entry.get("scene_blocks", [0]))
    starts = tuple(end * entry["block"] for end in ends)
    memory = replace(
        MEMORY,
        window=Window(entry["window"] - entry["sink"], entry["sink"]),
        starts=starts,
        hard=tuple(start for start, cut in zip(starts, entry.get("cut", ()), strict=False) if cut),
    )
    return replace(
        SYSTEM, plan=blocks(entry["block"]), solver=renoise(entry), memory=memory, num_frames=frames(entry)
    )
