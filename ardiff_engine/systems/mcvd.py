# SPDX-License-Identifier: Apache-2.0
"""MCVD: blocks of new frames between past and future ones, all of them in one network."""

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDPM
from ardiff_engine.memory.windows import Windows, overlapping
from ardiff_engine.plan import blocks, parts
from ardiff_engine.systems.official.window_calls import given_at
from ardiff_engine.systems.system import System

WINDOWS = overlapping(25, 10, 5)

SYSTEM = System(
    name="mcvd",
    title="MCVD",
    paper="",
    repository="voletiv/mcvd-pytorch",
    plan=parts(blocks(1, lag=0), [stop for _, stop in WINDOWS]),
    solver=DDPM(NoiseSchedule.linear(1e-4, 0.02), 100, prediction="eps"),
    memory=Windows(WINDOWS, joint=True),
    num_frames=25,
    given_frames=5,
    calls_of=given_at(()),
    stores_last=False,
    exact="Which frames condition which (`training.frame_dropout`); no trace of its code.",
    left_out="A U-Net of pictures: past and future are channels, and masked ones are zeros.",
)
