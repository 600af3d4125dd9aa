# SPDX-License-Identifier: Apache-2.0
"""Knot Forcing: blocks of three under a reference (frame 0) whose place runs ahead of the video; a block is
made with the first frame of the next one."""

from dataclasses import replace

from ardiff_engine.memory import Ahead, Placed, Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems import self_forcing
from ardiff_engine.systems.official.knot_forcing import with_the_next

AHEAD = Ahead(8, 4, lead=1)

SYSTEM = replace(
    self_forcing.SYSTEM,
    name="knot-forcing",
    title="Knot Forcing",
    paper="2512.21734",
    repository="no public code",
    plan=blocks(3, first=1),
    memory=Placed(Window(9, sink=1), AHEAD),
    num_frames=22,
    given_frames=1,
    calls_of=with_the_next(1),
    exact="No public code; who is fed and seen, and the place of the reference, as others describe it. The "
    "window is ours.",
    left_out="The frame that two blocks make, and the mean of its two estimates: traced, not served. Its "
    "condition, in channels of the network's input.",
)
