# SPDX-License-Identifier: Apache-2.0
"""Rolling Forcing: a window of blocks at successive levels that see each other, and a sink."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.memory import Window
from ardiff_engine.plan import rolling
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import SCHEDULE, Entry, frames, renoise

SYSTEM = System(
    name="rolling-forcing",
    title="Rolling Forcing",
    paper="2509.25161",
    repository="TencentARC/RollingForcing",
    plan=rolling(5, block=3),
    solver=Renoise(SCHEDULE, SCHEDULE.warp([1000, 800, 600, 400, 200])),
    memory=Window(18, sink=3, joint=True),
)


def from_spec(entry: Entry) -> System:
    steps = len(entry["timesteps"])
    return replace(
        SYSTEM,
        plan=rolling(steps, block=entry["block"]),
        solver=renoise(entry),
        num_frames=frames(entry),
    )
