# SPDX-License-Identifier: Apache-2.0
"""Self-Forcing++: Self-Forcing for minutes, with the rolling cache that it was trained with, and no sink."""

from dataclasses import replace

from ardiff_engine.memory import Window
from ardiff_engine.systems import self_forcing

SYSTEM = replace(
    self_forcing.SYSTEM,
    name="self-forcing-plus-plus",
    title="Self-Forcing++",
    paper="",
    repository="justincui03/Self-Forcing-Plus-Plus",
    memory=Window(21),
    exact="What it shares with Self-Forcing; no code of its own is public.",
    left_out="Training on windows of its own long videos. The end of its table of places, at frame 1024.",
)
