# SPDX-License-Identifier: Apache-2.0
"""SkyReels-V2: a lag between blocks, and all frames of a window see each other in every pass."""

from dataclasses import replace

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.memory import Full
from ardiff_engine.memory.windows import Windows
from ardiff_engine.plan import blocks
from ardiff_engine.systems.official.skyreels_v2 import OverwrittenUniPC
from ardiff_engine.systems.official.window_calls import given_at
from ardiff_engine.systems.system import System

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
