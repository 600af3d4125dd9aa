# SPDX-License-Identifier: Apache-2.0
"""Causal-Forcing and Causal-Forcing++: frame by frame in few steps, the first one in four (after ASD)."""

from dataclasses import replace

from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.plan import blocks
from ardiff_engine.systems import self_forcing
from ardiff_engine.systems.wan_family import FOUR_STEPS, SCHEDULE

SYSTEM = replace(
    self_forcing.SYSTEM,
    name="causal-forcing",
    title="Causal-Forcing",
    paper="2602.02214",
    repository="thu-ml/Causal-Forcing",
    exact="Calls and latents, framewise in four, two and one steps.",
)
TWO_STEPS = (FOUR_STEPS, Renoise(SCHEDULE, SCHEDULE.warp([1000, 500])))
FRAMEWISE = replace(SYSTEM, title="Causal-Forcing++", paper="2605.15141", plan=blocks(1), solver=TWO_STEPS)
VARIANTS = (replace(FRAMEWISE, name="causal-forcing-framewise"),)
