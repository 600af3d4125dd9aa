# SPDX-License-Identifier: Apache-2.0
"""FLEX: longer videos of Self-Forcing: neighbours start from noise that points apart, and a sink stays."""

from dataclasses import replace

from ardiff_engine.memory import Window
from ardiff_engine.noise import Antiphase
from ardiff_engine.systems import self_forcing

SYSTEM = replace(
    self_forcing.SYSTEM,
    name="flex",
    title="FLEX",
    paper="2602.14027",
    repository="Ga-Lee/Frequency-aware-Length-EXtension",
    memory=Window(18, sink=3),
    noise=Antiphase(),
    exact="Nothing: no code is public, and the formulas of its noise and sizes of its sink were not read.",
    left_out="Slow temporal frequencies, which are stretched: a network's rotation.",
)
