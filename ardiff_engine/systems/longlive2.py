# SPDX-License-Identifier: Apache-2.0
"""LongLive 2.0: blocks of eight, UniPC anew for each of them, a window of 32 frames with a sink of 8."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import UniPC
from ardiff_engine.memory import MemoryPolicy, Placed, Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry, frames, rolling

SYSTEM = System(
    name="longlive2",
    title="LongLive 2.0",
    paper="",
    repository="NVlabs/LongLive",
    plan=blocks(8),
    solver=UniPC(FlowSchedule(5.0), 4),
    memory=Window(24, sink=8),
    fps=24,
)


def from_spec(entry: Entry) -> System:
    memory: MemoryPolicy = rolling(entry)
    return replace(
        SYSTEM,
        plan=blocks(entry["block"]),
        solver=UniPC(FlowSchedule(entry["shift"]), entry["steps"]),
        memory=Placed(memory, "window") if entry["relative_rope"] else memory,
        num_frames=frames(entry),
        given_frames=entry["given_frames"],
    )
