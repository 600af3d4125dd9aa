# SPDX-License-Identifier: Apache-2.0
"""Epona: the last frames are encoded once for each new one, which another network then denoises alone."""

from ardiff_engine.diffusion.solvers import RisingEuler
from ardiff_engine.memory import RecomputedWindow
from ardiff_engine.plan import blocks
from ardiff_engine.systems.official.epona import encoded, times, without_places
from ardiff_engine.systems.system import System

SYSTEM = System(
    name="epona",
    title="Epona",
    paper="2506.24113",
    repository="Kevin-thu/Epona",
    plan=blocks(1),
    solver=RisingEuler(times(100, 512)),
    memory=RecomputedWindow(11),
    fps=5,
    num_frames=20,
    given_frames=10,
    calls_of=encoded(10),
    stores_last=False,
    recorded=without_places,
    exact="Calls, schedules and latents of free running.",
    left_out="Its two networks: the engine runs one, over the window and the new frame together. Poses.",
)
