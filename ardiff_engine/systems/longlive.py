# SPDX-License-Identifier: Apache-2.0
"""LongLive 1.0: Self-Forcing with a sink of three frames; a new prompt computes the cache again."""

from dataclasses import replace

from ardiff_engine.memory import Recached, Window
from ardiff_engine.systems import self_forcing

SYSTEM = replace(
    self_forcing.SYSTEM,
    name="longlive",
    title="LongLive",
    paper="2509.22622",
    repository="NVlabs/LongLive (v1.0)",
    memory=Recached(Window(9, sink=3)),
    on_prompt="recommit",
    exact="Calls and latents; new prompts, with a sink that stays and one that moves, in whose pass frames "
    "see later ones, as in its code.",
)
