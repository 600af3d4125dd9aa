# SPDX-License-Identifier: Apache-2.0
"""Generative View Stitching: all frames at one level, in windows that overlap and keep their centre."""

from ardiff_engine.memory.windows import Windows
from ardiff_engine.plan import blocks
from ardiff_engine.systems.official.generative_view_stitching import solver, stitched
from ardiff_engine.systems.system import System


def system(
    frames: int, past: int, centre: int, future: int, total: int, steps: int, given: int, loop: bool
) -> System:
    padded = past + frames + future
    return System(
        name="generative-view-stitching",
        title="Generative View Stitching",
        paper="2510.24718",
        repository="andrewsonga/generative_view_stitching",
        plan=blocks(1, lag=0),
        solver=solver(total, steps),
        memory=Windows(((0, padded),), joint=True),
        num_frames=padded,
        calls_of=stitched(past, centre, future, given, loop),
        stores_last=False,
        exact="Calls, also those of windows that close a loop around the middle.",
        left_out="Loops elsewhere, which its code lists by hand; the engine sees one window whole.",
    )


SYSTEM = system(16, 2, 4, 2, 1000, 50, 1, loop=False)
