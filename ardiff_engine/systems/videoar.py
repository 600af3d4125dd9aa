# SPDX-License-Identifier: Apache-2.0
"""VideoAR: a frame after the other, each from its coarsest scale to its finest."""

from ardiff_engine.memory import Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.official.token_levels import kept_by_level, levels
from ardiff_engine.systems.system import System

SYSTEM = System(
    name="videoar",
    title="VideoAR",
    paper="2601.05966",
    repository="no public code",
    plan=blocks(1),
    solver=levels(6),
    memory=Window(5, clean=False),
    num_frames=5,
    calls_of=kept_by_level,
    stores_last=False,
    not_served="its scales have different numbers of tokens; network and tokenizer are the user's",
    exact="No public code; who sees which scales of which frames, as its paper says. The number of "
    "scales and the window are ours.",
    left_out="Bits of a scale, and features that are summed over scales; guidance for each scale. Places "
    "that begin after the text.",
)
