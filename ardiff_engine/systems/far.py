# SPDX-License-Identifier: Apache-2.0
"""FAR: a frame after the other; clean frames have their own timestep, and are stored in the next pass."""

from ardiff_engine.memory import Full
from ardiff_engine.plan import blocks
from ardiff_engine.systems.official.far import solver, with_the_next
from ardiff_engine.systems.system import System

SYSTEM = System(
    name="far",
    title="FAR",
    paper="2503.19325",
    repository="showlab/FAR",
    plan=blocks(1),
    solver=solver(50),
    memory=Full(),
    num_frames=16,
    given_frames=1,
    calls_of=with_the_next,
    stores_last=False,
    exact="Calls and latents of its short context and of its long one.",
    left_out="Logits that fall with distance. A long context, of fewer tokens per frame: traced, not served.",
)
