# SPDX-License-Identifier: Apache-2.0
"""How an entry of the golden index names the sizes that most systems share."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.memory import Full, Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.system import System

Entry = Mapping[str, Any]


def renoise(entry: Entry, steps: Sequence[float] | None = None) -> Renoise:
    """The solver of its list of timesteps, as they are fed."""
    return Renoise(FlowSchedule(entry.get("shift", 5.0)), entry["timesteps"] if steps is None else steps)


def frames(entry: Entry) -> int:
    """Of the whole video."""
    return int(entry["new_frames"]) + int(entry.get("given_frames", 0))


def window(entry: Entry) -> Window:
    """Their rolling cache of `window` frames, the sink among them."""
    sink = int(entry.get("sink", 0))
    return Window(int(entry["window"]) - sink, sink)


def sized(system: System, entry: Entry) -> System:
    """A system of one block after the other in the sizes of an entry; without a window everything stays."""
    return replace(
        system,
        plan=blocks(entry["block"], first=entry.get("given_block")),
        solver=renoise(entry),
        memory=window(entry) if entry.get("window") else Full(),
        num_frames=frames(entry),
        given_frames=int(entry.get("given_frames", 0)),
    )
