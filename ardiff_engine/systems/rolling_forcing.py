# SPDX-License-Identifier: Apache-2.0
"""Rolling Forcing: a window of blocks at successive levels that see each other, and a sink before it."""

from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.memory import Placed, Window
from ardiff_engine.plan import rolling
from ardiff_engine.systems.official.rolling_forcing import clean_windows
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import SCHEDULE

SYSTEM = System(
    name="rolling-forcing",
    title="Rolling Forcing",
    paper="2509.25161",
    repository="TencentARC/RollingForcing",
    plan=rolling(5, block=3),
    solver=Renoise(SCHEDULE, SCHEDULE.warp([1000, 800, 600, 400, 200])),
    memory=Placed(Window(18, sink=3, joint=True, stored=21), "anchored"),
    calls_of=clean_windows,
    exact="Calls and latents.",
    left_out="Clean passes over estimates of the first block, which nobody reads: traced, not run.",
)
