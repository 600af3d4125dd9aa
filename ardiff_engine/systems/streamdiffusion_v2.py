# SPDX-License-Identifier: Apache-2.0
"""StreamDiffusionV2: frame by frame, all steps in one pass, and a ring of K/V for every step."""

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.memory import PerLevel, Restarted, Window
from ardiff_engine.plan import stage_major
from ardiff_engine.systems.official.streamdiffusion_v2 import rows
from ardiff_engine.systems.system import System

PREPARED = 2
"""Frames that run ahead of the pipeline. What they wrote in their last step is copied to all rings."""


def memory_of(cache: int, sink: int, refresh: int) -> Restarted:
    """The ring of the released code never lets go of its first three slots, whatever the sink."""
    sink = max(sink, PREPARED + 1)
    ring = PerLevel(Window(cache - sink, sink), "same", ahead=PREPARED)
    return Restarted(ring, limit=refresh, first=cache - 1)


SYSTEM = System(
    name="streamdiffusion-v2",
    title="StreamDiffusionV2",
    paper="2511.07399",
    repository="chenfengxu714/StreamDiffusionV2",
    plan=stage_major(1, first=PREPARED, pipelined=True, ahead=1),
    solver=Renoise(FlowSchedule(8.0), [700, 500]),
    memory=memory_of(6, 3, 50),
    calls_of=rows(PREPARED),
    stores_last=False,
    exact="Calls, two and four steps, with places that start anew.",
    left_out="A sink that adapts; rows that are empty while the pipeline fills are traced, not run.",
)
