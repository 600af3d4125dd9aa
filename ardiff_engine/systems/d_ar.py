# SPDX-License-Identifier: Apache-2.0
"""D-AR: a picture as a sequence of tokens from coarse to fine; a group of them decodes a diffusion step."""

from dataclasses import replace

from ardiff_engine.systems import videoar
from ardiff_engine.systems.official.token_levels import levels

SYSTEM = replace(
    videoar.SYSTEM,
    name="d-ar",
    title="D-AR",
    paper="2505.23660",
    repository="showlab/D-AR",
    solver=levels(8),
    num_frames=1,
    not_served="its tokens come one by one from a language model; network and tokenizer are the user's",
    exact="Nothing by numbers: no trace of its code. The number of groups was not read.",
    left_out="Tokens within a group, each of which sees those before it; the decoder, which takes a "
    "diffusion step in pixels for each group.",
)
