# SPDX-License-Identifier: Apache-2.0
"""FIFO-Diffusion: a queue of frames at successive levels; every tick each takes one step, and one leaves."""

from ardiff_engine.memory.windows import Windows
from ardiff_engine.plan import blocks
from ardiff_engine.systems.official.fifo_diffusion import queue, solver
from ardiff_engine.systems.system import System


def system(size: int, partitions: int, new: int, lookahead: bool, eta: float) -> System:
    steps, given = size * partitions, size // 2 if lookahead else 0
    ticks = new + steps - size
    frames = given + steps + ticks - 1
    return System(
        name="fifo-diffusion",
        title="FIFO-Diffusion",
        paper="2405.11473",
        repository="jjihwan/FIFO-Diffusion_public",
        plan=blocks(1, lag=1),
        solver=solver(steps, eta),
        memory=Windows(((0, frames),), joint=True),
        guidance=12.0,
        fps=8,
        num_frames=frames,
        given_frames=given,
        calls_of=queue(size, ticks, lookahead),
        stores_last=False,
        exact="Calls, with one and more partitions and with lookahead; latents without noise of the steps.",
        left_out="The engine sees a window whole; partitions, and a queue that is full at once, are traced.",
    )


SYSTEM = system(16, 4, 8, True, 1.0)
