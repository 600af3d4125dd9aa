# SPDX-License-Identifier: Apache-2.0
"""MAGI-1: chunks in a staircase of stages; the noisier a chunk is, the further back it sees."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import Euler
from ardiff_engine.memory import Ranges
from ardiff_engine.plan import staged
from ardiff_engine.systems.calls import by_pass
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry

SYSTEM = System(
    name="magi-1",
    title="MAGI-1",
    paper="2505.13211",
    repository="SandAI-org/MAGI-1",
    plan=staged(4),
    solver=Euler(FlowSchedule(3.0), 64),
    memory=Ranges((5, 4, 3, 2), clean=1),
    calls_of=by_pass,
    stores_last=False,
    fps=24,
)


def from_spec(entry: Entry) -> System:
    window = entry["window"]
    return replace(
        SYSTEM,
        plan=staged(window),
        solver=Euler(FlowSchedule(entry["shift"]), entry["steps"]),
        memory=Ranges((5, 4, 3, 2)[:window], clean=1),
        num_frames=entry["chunks"],
    )
