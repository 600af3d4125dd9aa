# SPDX-License-Identifier: Apache-2.0
"""Infinity-RoPE: a short window that is seen at places counted from its start."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.memory import Placed, Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.self_forcing import SYSTEM as SELF_FORCING
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry, frames, renoise, rolling

SYSTEM = replace(
    SELF_FORCING,
    name="infinity-rope",
    title="Infinity-RoPE",
    paper="2511.20649",
    repository="yesiltepe-hidir/infinity-rope",
    memory=Placed(Window(5, sink=1), "window"),
)


def from_spec(entry: Entry) -> System:
    return replace(
        SYSTEM,
        plan=blocks(entry["block"]),
        solver=renoise(entry),
        memory=Placed(rolling(entry), "window"),
        num_frames=frames(entry),
    )
