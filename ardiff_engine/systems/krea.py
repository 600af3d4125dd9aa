# SPDX-License-Identifier: Apache-2.0
"""Krea Realtime: a few frames of context are computed again before every block, at places counted from their
start."""

from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.memory import RecomputedWindow
from ardiff_engine.plan import blocks
from ardiff_engine.systems.official.krea import recomputed
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import SCHEDULE

SYSTEM = System(
    name="krea-realtime",
    title="Krea Realtime",
    paper="",
    repository="krea-ai/realtime-video",
    plan=blocks(3),
    solver=Renoise(SCHEDULE, [1000, 937, 833, 625]),
    memory=RecomputedWindow(6),
    calls_of=recomputed(3, False),
    stores_last=False,
    exact="Calls and latents.",
    left_out="Frames encoded anew from pictures; a first frame that stays is traced, not served.",
)
