# SPDX-License-Identifier: Apache-2.0
"""SkyReels-V2: a lag between blocks, and all frames of a window see each other in every pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import UniPC
from ardiff_engine.memory import Full
from ardiff_engine.memory.windows import Windows, overlapping
from ardiff_engine.plan import blocks, parts
from ardiff_engine.systems.system import System
from ardiff_engine.systems.trace import Trace
from ardiff_engine.systems.wan_family import Entry
from ardiff_engine.systems.window_calls import given_at

A, B, LAST = 2, 3, 5
"""Columns of a row: of x, of its x̂0, and of the x̂0 before."""


@dataclass(frozen=True, slots=True)
class OverwrittenUniPC(UniPC):
    """UniPC as its code and diffusers' run it; frames that have not started are fed at the first timestep.

    The first sample that both keep for the corrector is a view of the latents, which the first step
    overwrites. So the second step starts from a·x₁ + b·x̂0₀, with a and b of the first, and not from
    x₁ = a·x₀ + b·x̂0₀. Later steps keep a corrected sample, which is a tensor of its own.
    """

    def __post_init__(self) -> None:
        UniPC.__post_init__(self)
        rows = self.coefficients
        if self.num_steps > 1:
            kept = rows[1, A].clone()
            rows[1, A] *= rows[0, A]
            rows[1, LAST] += kept * rows[0, B]

    @property
    def waiting_timestep(self) -> float:
        return float(self.timesteps[0])


def told(given: int, timestep: float, frames: int) -> Callable[[Trace], Trace]:
    """Given frames are told this timestep; what is made are `frames`, without those given at the end."""

    def of(trace: Trace) -> Trace:
        timesteps = trace.timestep.copy()
        timesteps[:, :given] = np.where(trace.fed[:, :given], timestep, np.nan)
        final = None if trace.final is None else trace.final[:frames]
        return replace(trace, timestep=timesteps, final=final)

    return of


BASE, OVERLAP = 25, 5
"""Latent frames of a window, and of those that it takes from the one before."""

SYSTEM = System(
    name="skyreels-v2",
    title="SkyReels-V2",
    paper="2504.13074",
    repository="SkyworkAI/SkyReels-V2",
    plan=blocks(1, lag=5),
    solver=OverwrittenUniPC(FlowSchedule(8.0), 50),
    takes_scheduler=True,
    memory=Windows(((0, BASE),), joint=True),
    guidance=5.0,
    fps=24,
    num_frames=BASE,
    calls_of=given_at(()),
    stores_last=False,
    exact="Calls and latents, and the matrices of its code and of diffusers' in all their sizes. The second "
    "step has a fault of its code, which a test names.",
    left_out="Frames given at the end, and given ones that get noise at every pass: traced, not served.",
)

VARIANTS = (
    replace(
        SYSTEM,
        name="skyreels-v2-causal",
        title="SkyReels-V2, causal blocks",
        plan=blocks(5, lag=5),
        memory=Full(),
        exact="Latents of diffusers' pipeline with causal_block_size and ar_step, which feeds every frame "
        "in every pass: here finished blocks are fed once.",
        left_out="",
    ),
)


def from_spec(entry: Entry) -> System:
    """base, overlap: of a video that is longer than a window; those of the release if not said."""
    steps, given, end = entry["steps"], entry["given_frames"], entry["given_end"]
    frames = entry["new_frames"] + end
    windows = overlapping(frames, entry.get("base", BASE), entry.get("overlap", OVERLAP))
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
