# SPDX-License-Identifier: Apache-2.0
"""SDVG: Self-Forcing drafted by a small network, block by block; a large one makes anew what a judge refuses
(`speculation.Drafted`). Both networks run this system, each in an engine of its own."""

from dataclasses import replace

from ardiff_engine.memory import Window
from ardiff_engine.systems import self_forcing

SYSTEM = replace(
    self_forcing.SYSTEM,
    name="sdvg",
    title="SDVG",
    paper="2604.17397",
    repository="no public code",
    memory=Window(21, back=6),
    exact="No public code; refused blocks are, to the bit, those of the large network alone.",
    left_out="ImageReward, its judge: any function of the drafted frames and their pictures can be one.",
)
