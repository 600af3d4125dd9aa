# SPDX-License-Identifier: Apache-2.0
"""The schedule of the few-step students of Wan."""

from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import Renoise

SCHEDULE = FlowSchedule(5.0)
FOUR_STEPS = Renoise(SCHEDULE, SCHEDULE.warp([1000, 750, 500, 250]))
