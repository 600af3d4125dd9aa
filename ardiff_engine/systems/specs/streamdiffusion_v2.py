# SPDX-License-Identifier: Apache-2.0
"""StreamDiffusionV2 in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.streamdiffusion_v2 import SYSTEM, memory_of
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    """frames: not in the entries of the index; the record is of 16 less the steps."""
    return replace(
        SYSTEM,
        solver=Renoise(FlowSchedule(8.0), entry["timesteps"]),
        memory=memory_of(entry["cache_frames"], entry["sink"], entry["refresh"]),
        num_frames=entry.get("frames", 16 - entry["steps"]),
    )
