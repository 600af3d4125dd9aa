# SPDX-License-Identifier: Apache-2.0
"""MAGI-1: chunks in a staircase of stages; the noisier a chunk is, the further back it sees. Frames are its
chunks of six latents, and the K/V of a finished one are stored in a pass that moves others."""

from ardiff_engine.diffusion.solvers import RisingEuler
from ardiff_engine.memory import Ranges
from ardiff_engine.plan import staged
from ardiff_engine.systems.calls import by_pass
from ardiff_engine.systems.official.magi import recorded, three_branches, times
from ardiff_engine.systems.system import System

SYSTEM = System(
    name="magi-1",
    title="MAGI-1",
    paper="2505.13211",
    repository="SandAI-org/MAGI-1",
    plan=staged(4),
    solver=RisingEuler(times(64, 3.0), commit=0.9999),
    branches_of=three_branches(times(64, 3.0)),
    memory=Ranges((5, 4, 3, 2), clean=1),
    calls_of=by_pass,
    stores_last=False,
    recorded=recorded(6),
    fps=24,
    exact="Calls and latents; with a prefix, and the shortcut of twelve steps.",
    left_out="A text for each chunk, chunks given in part, the mix of the distilled one without history.",
)
