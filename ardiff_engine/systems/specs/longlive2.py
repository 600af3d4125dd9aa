# SPDX-License-Identifier: Apache-2.0
"""LongLive 2.0 in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import UniPC
from ardiff_engine.memory import Shots, Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.longlive2 import SYSTEM
from ardiff_engine.systems.specs.entry import Entry, frames
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    size, cuts = entry["block"], entry["cut_blocks"]
    memory = Shots(
        Window(entry["window"] - entry["sink"], entry["sink"]),
        starts=tuple(cut * size for cut in cuts),
        pin=size if entry["multi_shot_sink"] else 0,
        offset=int(entry["rope_offset"]),
        positions="window" if entry["relative_rope"] else None,
    )
    return replace(
        SYSTEM,
        plan=blocks(size, given_within=True),
        solver=UniPC(FlowSchedule(entry["shift"]), entry["steps"]),
        memory=memory,
        num_frames=frames(entry),
        given_frames=entry["given_frames"],
    )
