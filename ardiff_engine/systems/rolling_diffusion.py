# SPDX-License-Identifier: Apache-2.0
"""Rolling Diffusion: a window whose frames are the noisier the later they are, and that moves on by one."""

from dataclasses import replace

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDPM
from ardiff_engine.memory import Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.calls import by_pass
from ardiff_engine.systems.system import System


def rolled(window: int, steps: int) -> System:
    """steps: from one place of the window to the next."""
    return replace(
        SYSTEM,
        plan=blocks(1, lag=steps),
        solver=DDPM(NoiseSchedule.cosine(), window * steps, prediction="v"),
        memory=Window(window, joint=True, clean=False),
    )


SYSTEM = System(
    name="rolling-diffusion",
    title="Rolling Diffusion",
    paper="2402.09470",
    repository="no public code",
    plan=blocks(1, lag=4),
    solver=DDPM(NoiseSchedule.cosine(), 20, prediction="v"),
    memory=Window(5, joint=True, clean=False),
    calls_of=by_pass,
    stores_last=False,
    exact="The local times of its worked schedule; no code is public. Schedule and sizes are ours.",
    left_out="Clean frames before the window are not fed again. Places of the window that still wait.",
)
