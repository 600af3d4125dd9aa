# SPDX-License-Identifier: Apache-2.0
"""Memory Forcing: a frame after the other under actions; eight recent frames, and eight that a router
chooses by where the camera is: `replace(system.memory, router=memory.highest(overlap))`."""

from dataclasses import replace

from ardiff_engine.memory import Routed, Window
from ardiff_engine.systems import nfd

SYSTEM = replace(
    nfd.SYSTEM,
    name="memory-forcing",
    title="Memory Forcing",
    paper="2510.03198",
    memory=Routed(Window(9), 8, history=512),
    exact="No public code; under a router of the test's own, the views as its paper says.",
    left_out="Cross-attention to the retrieved frames with rays of the cameras: self-attention sees them. "
    "The point cloud: the score is the user's.",
)
