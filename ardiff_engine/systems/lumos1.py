# SPDX-License-Identifier: Apache-2.0
"""Lumos-1: a frame after the other as masked tokens. A level is a share of masked tokens, and a finished
frame is stored with a part of its tokens masked. Network and sampler of tokens are the user's."""

from ardiff_engine.memory import Full
from ardiff_engine.plan import blocks
from ardiff_engine.systems.official.lumos1 import (
    FIRST_VISUAL,
    along_the_sequence,
    in_two_branches,
    masked_steps,
)
from ardiff_engine.systems.system import System

SYSTEM = System(
    name="lumos-1",
    title="Lumos-1",
    paper="2507.08801",
    repository="alibaba-damo-academy/Lumos",
    plan=blocks(1),
    solver=masked_steps(32, 56, 18, 0.7),
    memory=Full(),
    guidance=15.0,
    num_frames=7,
    calls_of=in_two_branches,
    recorded=along_the_sequence(FIRST_VISUAL),
    not_served="its network and its sampler of masked tokens are the user's",
    exact="Calls of both branches, and how many tokens are masked in each; its masks, attention and rotation "
    "in training.",
    left_out="Which tokens are sampled and masked again. Tokens and frames of the release were not read.",
)
