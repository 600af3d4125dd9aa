# SPDX-License-Identifier: Apache-2.0
"""SkyReels-V2 in the sizes of an entry."""

from __future__ import annotations

import re
from dataclasses import replace

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.memory.windows import Windows, overlapping
from ardiff_engine.plan import blocks, parts
from ardiff_engine.systems.official.skyreels_v2 import OverwrittenUniPC, told
from ardiff_engine.systems.official.window_calls import given_at
from ardiff_engine.systems.skyreels_v2 import BASE, OVERLAP, SYSTEM
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    """base, overlap: of a video that is longer than a window, or both in its `name`, ..._base6_overlap2;
    those of the release if neither says."""
    said = re.search("base([0-9]+)_overlap([0-9]+)", str(entry.get("name")))
    base, overlap = map(int, said.groups()) if said else (BASE, OVERLAP)
    steps, given, end = entry["steps"], entry["given_frames"], entry["given_end"]
    frames = entry["new_frames"] + end
    windows = overlapping(frames, entry.get("base", base), entry.get("overlap", overlap))
    own = blocks(entry["block"], lag=min(entry["ar_step"], steps))
    return replace(
        SYSTEM,
        plan=parts(own, [stop for _, stop in windows]),
        solver=OverwrittenUniPC(FlowSchedule(entry["shift"]), steps),
        memory=Windows(windows, joint=True),
        num_frames=frames,
        given_frames=given,
        calls_of=given_at(range(frames - end, frames)),
        recorded=told(given, entry["add_noise"], entry["new_frames"]),
    )
