# SPDX-License-Identifier: Apache-2.0
"""SkyReels-V2: a lag between blocks, and all frames of a window see each other in every pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import Table, UniPC
from ardiff_engine.memory.windows import Windows, overlapping
from ardiff_engine.plan import blocks, parts
from ardiff_engine.systems.system import System
from ardiff_engine.systems.trace import Trace
from ardiff_engine.systems.wan_family import Entry
from ardiff_engine.systems.window_calls import given_at


def solver(shift: float, steps: int) -> Table:
    """UniPC; frames that have not started are fed at 999."""
    own = UniPC(FlowSchedule(shift), steps)
    return Table(own.timesteps.tolist(), own.coefficients, waiting=999.0, prediction="flow")


def told(given: int, timestep: float) -> Callable[[Trace], Trace]:
    """Given frames are told this timestep."""

    def of(trace: Trace) -> Trace:
        timesteps = trace.timestep.copy()
        timesteps[:, :given] = np.where(trace.fed[:, :given], timestep, np.nan)
        return replace(trace, timestep=timesteps)

    return of


WINDOWS = overlapping(25, 25, 5)

SYSTEM = System(
    name="skyreels-v2",
    title="SkyReels-V2",
    paper="2504.13074",
    repository="SkyworkAI/SkyReels-V2",
    plan=blocks(1, lag=5),
    solver=solver(8.0, 50),
    memory=Windows(WINDOWS, joint=True),
    guidance=5.0,
    fps=24,
    num_frames=25,
    calls_of=given_at(()),
    stores_last=False,
    exact="Calls, and the matrices of its code and of diffusers' in all their sizes; not latents.",
    left_out="Frames given at the end, and given ones that get noise at every pass: traced, not served. "
    "Its latents differ by 1e-2 from those of our UniPC, from the second step on.",
)


def from_spec(entry: Entry) -> System:
    """base, overlap: of a video that is longer than a window."""
    steps, given, end = entry["steps"], entry["given_frames"], entry["given_end"]
    frames = entry["new_frames"] + end
    windows = overlapping(frames, entry.get("base", frames), entry.get("overlap", 0))
    own = blocks(entry["block"], lag=min(entry["ar_step"], steps))
    return replace(
        SYSTEM,
        plan=parts(own, [stop for _, stop in windows]),
        solver=solver(entry["shift"], steps),
        memory=Windows(windows, joint=True),
        num_frames=frames,
        given_frames=given,
        calls_of=given_at(range(frames - end, frames)),
        recorded=told(given, entry["add_noise"]),
    )
