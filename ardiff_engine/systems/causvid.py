# SPDX-License-Identifier: Apache-2.0
"""CausVid: three steps, as they are listed, of a schedule shifted by 8; longer videos start anew from given
frames."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.memory import Full
from ardiff_engine.plan import blocks
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry, renoise

SYSTEM = System(
    name="causvid",
    title="CausVid",
    paper="2412.07772",
    repository="tianweiy/CausVid",
    plan=blocks(3),
    solver=Renoise(FlowSchedule(8.0), [1000, 757, 522]),
    memory=Full(),
    num_frames=21,
)


def from_spec(entry: Entry) -> System:
    return replace(
        SYSTEM,
        plan=blocks(entry["block"]),
        solver=renoise(entry),
        num_frames=entry["frames"],
        given_frames=entry["overlap"],
    )
