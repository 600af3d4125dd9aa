# SPDX-License-Identifier: Apache-2.0
"""Infinity-RoPE: a short window that is seen at places counted from its start."""

from dataclasses import replace

from ardiff_engine.memory import Shots, Window
from ardiff_engine.systems import self_forcing

MEMORY = Shots(Window(5, sink=1), carried=2, positions="window")

SYSTEM = replace(
    self_forcing.SYSTEM,
    name="infinity-rope",
    title="Infinity-RoPE",
    paper="2511.20649",
    repository="yesiltepe-hidir/infinity-rope",
    memory=MEMORY,
    exact="Calls and latents; flushes and hard cuts between scenes.",
)
