# SPDX-License-Identifier: Apache-2.0
"""LongLive 1.0: Self-Forcing with a sink of three frames; a new prompt computes the cache again."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.memory import Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.self_forcing import SYSTEM as SELF_FORCING
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry, frames, renoise, rolling

SYSTEM = replace(
    SELF_FORCING,
    name="longlive",
    title="LongLive",
    paper="2509.22622",
    repository="NVlabs/LongLive (v1.0)",
    memory=Window(9, sink=3),
    on_prompt="recommit",
)


def from_spec(entry: Entry) -> System:
    return replace(
        SYSTEM,
        plan=blocks(entry["block"]),
        solver=renoise(entry),
        memory=rolling(entry),
        num_frames=frames(entry),
    )
