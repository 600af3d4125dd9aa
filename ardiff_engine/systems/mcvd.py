# SPDX-License-Identifier: Apache-2.0
"""MCVD: blocks of new frames between past and future ones, all of them in one network."""

from dataclasses import replace

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDPM
from ardiff_engine.memory.windows import Windows, overlapping
from ardiff_engine.plan import blocks, parts
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry
from ardiff_engine.systems.window_calls import given_at

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


def from_spec(entry: Entry) -> System:
    """past, new and future frames of a block; blocks: of a prediction, which has no future frames."""
    past, new, future = entry["past"], entry["new"], entry["future"]
    windows = overlapping(past + new * entry["blocks"] + future, past + new + future, past + future)
    return replace(
        SYSTEM,
        plan=parts(blocks(1, lag=0), [stop for _, stop in windows]),
        memory=Windows(windows, joint=True),
        num_frames=windows[-1][1],
        given_frames=past,
        calls_of=given_at(range(past + new, past + new + future)),
    )
