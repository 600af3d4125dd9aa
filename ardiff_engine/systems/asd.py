# SPDX-License-Identifier: Apache-2.0
"""Adversarial Self-Distillation with first-frame enhancement: four steps for the first block, then one."""

from dataclasses import replace

from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.systems import causal_forcing, self_forcing
from ardiff_engine.systems.wan_family import FOUR_STEPS, SCHEDULE

SYSTEM = replace(
    self_forcing.SYSTEM,
    name="asd",
    title="ASD with first-frame enhancement",
    paper="",
    repository="BigAandSmallq/SAD",
    solver=(FOUR_STEPS, Renoise(SCHEDULE, SCHEDULE.warp([1000]))),
    exact="Its worked schedule; no code is public.",
    left_out="Its training, which matches n steps to n + 1.",
)
VARIANTS = (
    replace(
        SYSTEM,
        name="asd-two-steps",
        title="ASD with first-frame enhancement, two steps",
        solver=causal_forcing.TWO_STEPS,
    ),
)
