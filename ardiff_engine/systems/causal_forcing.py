# SPDX-License-Identifier: Apache-2.0
"""Causal-Forcing and Causal-Forcing++: frame by frame in few steps, the first one in four (after ASD)."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.memory import Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import FOUR_STEPS, SCHEDULE, Entry, frames, renoise, rolling

SYSTEM = System(
    name="causal-forcing",
    title="Causal-Forcing",
    paper="2602.02214",
    repository="thu-ml/Causal-Forcing",
    plan=blocks(3),
    solver=FOUR_STEPS,
    memory=Window(21),
)
VARIANTS = (
    replace(
        SYSTEM,
        name="causal-forcing-framewise",
        title="Causal-Forcing++, framewise in two steps",
        plan=blocks(1),
        solver=(FOUR_STEPS, Renoise(SCHEDULE, SCHEDULE.warp([1000, 500]))),
    ),
)


def from_spec(entry: Entry) -> System:
    first = entry.get("first_block_timesteps")
    every = renoise(entry)
    return replace(
        SYSTEM,
        plan=blocks(entry["block"]),
        solver=every if first is None else (renoise(entry, first), every),
        memory=rolling(entry),
        num_frames=frames(entry),
        given_frames=entry["given_frames"],
    )
