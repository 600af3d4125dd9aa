# SPDX-License-Identifier: Apache-2.0
"""Self-Forcing: blocks of three, one after the other, four steps each, a rolling cache."""

from dataclasses import replace

from ardiff_engine.memory import Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import FOUR_STEPS

SYSTEM = System(
    name="self-forcing",
    title="Self-Forcing",
    paper="2506.08009",
    repository="guandeh17/Self-Forcing",
    plan=blocks(3),
    solver=FOUR_STEPS,
    memory=Window(21),
    exact="Calls and latents; rolling windows with and without a sink, given frames, a first block of one.",
)
VARIANTS = (replace(SYSTEM, name="self-forcing-framewise", title="Self-Forcing, framewise", plan=blocks(1)),)
